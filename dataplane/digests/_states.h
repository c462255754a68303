/* A stream's hash state, and feeding many of them side by side; no Python in here, so that it can be tested alone. */
#ifndef GLISSADE_STATES_H
#define GLISSADE_STATES_H

#include "_kernels.h"

#define MOST_STREAMS 64

enum algorithm { ALGORITHM_MD5, ALGORITHM_SHA224, ALGORITHM_SHA256, ALGORITHM_SHA384, ALGORITHM_SHA512, ALGORITHMS };

struct algorithm_facts {
    const char *name;
    enum family family;
    size_t chain_bytes;
    size_t digest_bytes;
};

extern const struct algorithm_facts FACTS[ALGORITHMS];

struct hash_state {
    enum algorithm algorithm;
    uint64_t length; /* of all bytes so far; the last length % block of them wait in `partial` */
    union {
        uint32_t w32[8];
        uint64_t w64[8];
    } chain;
    uint8_t partial[MOST_BLOCK];
};

/* Which kernels a family uses and what one call costs per block (any unit). One of them has one lane. */
struct plan {
    size_t count;
    struct {
        const struct kernel *kernel;
        double cost;
    } choices[8];
};

void state_init(struct hash_state *state, enum algorithm algorithm);

/* Hash the next `size` bytes of each stream; all states are of one family, count <= MOST_STREAMS. */
void states_update(const struct plan *plan, struct hash_state *const states[], const uint8_t *const data[],
                   size_t count, size_t size);

/* The same for md5 and sha512 of the same streams, together where there is a kernel and they are at a whole block. */
void states_update_both(const struct plan *md5_plan, const struct plan *sha512_plan, struct hash_state *const md5[],
                        struct hash_state *const sha512[], const uint8_t *const data[], size_t count, size_t size);

/* The digest of the bytes so far; the state stays as it is. */
void state_digest(const struct plan *plan, const struct hash_state *state, uint8_t digest[64]);

#endif
