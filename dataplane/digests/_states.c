#include "_states.h"

#include <string.h>

const struct algorithm_facts FACTS[ALGORITHMS] = {
    [ALGORITHM_MD5] = {"md5", MD5, 16, 16},          [ALGORITHM_SHA224] = {"sha224", SHA256, 32, 28},
    [ALGORITHM_SHA256] = {"sha256", SHA256, 32, 32}, [ALGORITHM_SHA384] = {"sha384", SHA512, 64, 48},
    [ALGORITHM_SHA512] = {"sha512", SHA512, 64, 64},
};

static const uint32_t START_MD5[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
static const uint32_t START_SHA224[8] = {0xc1059ed8, 0x367cd507, 0x3070dd17, 0xf70e5939,
                                         0xffc00b31, 0x68581511, 0x64f98fa7, 0xbefa4fa4};
static const uint32_t START_SHA256[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
static const uint64_t START_SHA384[8] = {
    UINT64_C(0xcbbb9d5dc1059ed8), UINT64_C(0x629a292a367cd507), UINT64_C(0x9159015a3070dd17),
    UINT64_C(0x152fecd8f70e5939), UINT64_C(0x67332667ffc00b31), UINT64_C(0x8eb44a8768581511),
    UINT64_C(0xdb0c2e0d64f98fa7), UINT64_C(0x47b5481dbefa4fa4)};
static const uint64_t START_SHA512[8] = {
    UINT64_C(0x6a09e667f3bcc908), UINT64_C(0xbb67ae8584caa73b), UINT64_C(0x3c6ef372fe94f82b),
    UINT64_C(0xa54ff53a5f1d36f1), UINT64_C(0x510e527fade682d1), UINT64_C(0x9b05688c2b3e6c1f),
    UINT64_C(0x1f83d9abfb41bd6b), UINT64_C(0x5be0cd19137e2179)};

void state_init(struct hash_state *state, enum algorithm algorithm)
{
    static const void *const starts[ALGORITHMS] = {START_MD5, START_SHA224, START_SHA256, START_SHA384,
                                                   START_SHA512};
    memset(state, 0, sizeof *state);
    state->algorithm = algorithm;
    memcpy(&state->chain, starts[algorithm], FACTS[algorithm].chain_bytes);
}

/* The kernel with one lane. */
static const struct kernel *narrow(const struct plan *plan)
{
    for (size_t i = 0; i < plan->count; i++)
        if (plan->choices[i].kernel->lanes == 1)
            return plan->choices[i].kernel;
    return plan->choices[0].kernel;
}

/* `used` streams in a kernel that may have more lanes: the others repeat the first into nowhere. */
static void run(const struct kernel *kernel, void *const chains[], const uint8_t *const data[], size_t used,
                size_t blocks)
{
    uint64_t nowhere[MOST_LANES][8];
    void *all_chains[MOST_LANES];
    const uint8_t *all_data[MOST_LANES];
    if (blocks == 0)
        return;
    memset(nowhere, 0, sizeof nowhere);
    for (size_t i = 0; i < kernel->lanes; i++) {
        all_chains[i] = i < used ? chains[i] : nowhere[i];
        all_data[i] = i < used ? data[i] : data[0];
    }
    kernel->run(all_chains, all_data, blocks);
}

static void run_alone(const struct plan *plan, struct hash_state *state, const uint8_t *data, size_t blocks)
{
    void *chain = &state->chain;
    run(narrow(plan), &chain, &data, 1, blocks);
}

/* All streams by the cheapest row of kernels: best[n] = min over kernels of its cost + best[n - its lanes]. */
static void run_all(const struct plan *plan, void *const chains[], const uint8_t *const data[], size_t count,
                    size_t blocks)
{
    double best[MOST_STREAMS + 1];
    size_t choice[MOST_STREAMS + 1];
    best[0] = 0;
    choice[0] = 0;
    for (size_t n = 1; n <= count; n++) {
        best[n] = 0;
        choice[n] = 0;
        for (size_t i = 0; i < plan->count; i++) {
            const size_t lanes = plan->choices[i].kernel->lanes;
            const double cost = plan->choices[i].cost + (lanes < n ? best[n - lanes] : 0);
            if (i == 0 || cost < best[n]) {
                best[n] = cost;
                choice[n] = i;
            }
        }
    }
    for (size_t n = count; n > 0;) {
        const struct kernel *kernel = plan->choices[choice[n]].kernel;
        const size_t used = kernel->lanes < n ? kernel->lanes : n;
        run(kernel, chains + (count - n), data + (count - n), used, blocks);
        n -= used;
    }
}

void states_update(const struct plan *plan, struct hash_state *const states[], const uint8_t *const data[],
                   size_t count, size_t size)
{
    void *chains[MOST_STREAMS];
    const uint8_t *next[MOST_STREAMS];
    size_t blocks[MOST_STREAMS];
    size_t common = SIZE_MAX;
    if (count == 0)
        return;
    const size_t block = block_bytes(FACTS[states[0]->algorithm].family);
    for (size_t i = 0; i < count; i++) {
        struct hash_state *state = states[i];
        const size_t filled = (size_t)(state->length % block);
        size_t head = filled == 0 ? 0 : block - filled;
        if (head > size)
            head = size;
        if (head > 0)
            memcpy(state->partial + filled, data[i], head);
        if (filled > 0 && filled + head == block)
            run_alone(plan, state, state->partial, 1);
        chains[i] = &state->chain;
        next[i] = data[i] + head;
        blocks[i] = (size - head) / block;
        if (blocks[i] < common)
            common = blocks[i];
        state->length += size;
    }
    if (common > 0)
        run_all(plan, chains, next, count, common);
    for (size_t i = 0; i < count; i++) {
        struct hash_state *state = states[i];
        const uint8_t *rest = next[i] + common * block;
        const uint8_t *end = data[i] + size;
        run_alone(plan, state, rest, blocks[i] - common);
        rest += (blocks[i] - common) * block;
        /* What did not fill the block that had begun is in `partial` already. */
        if (rest < end)
            memcpy(state->partial, rest, (size_t)(end - rest));
    }
}

void states_update_both(const struct plan *md5_plan, const struct plan *sha512_plan, struct hash_state *const md5[],
                        struct hash_state *const sha512[], const uint8_t *const data[], size_t count, size_t size)
{
    const uint8_t *rest[MOST_STREAMS];
    size_t blocks = both_kernel(BOTH_LANES) == NULL ? 0 : size / 128;
    for (size_t i = 0; i < count; i++)
        if (md5[i]->length % 64 != 0 || sha512[i]->length % 128 != 0)
            blocks = 0;
    for (size_t first = 0, lanes; blocks > 0 && first < count; first += lanes) {
        uint64_t nowhere[2][BOTH_LANES][8];
        void *chains[2][BOTH_LANES];
        const uint8_t *sources[BOTH_LANES];
        lanes = count - first == 1 ? 1 : count - first <= FEW_BOTH_LANES ? FEW_BOTH_LANES : BOTH_LANES;
        memset(nowhere, 0, sizeof nowhere);
        for (size_t i = 0; i < lanes; i++) {
            const int is_used = first + i < count;
            chains[0][i] = is_used ? (void *)&md5[first + i]->chain : nowhere[0][i];
            chains[1][i] = is_used ? (void *)&sha512[first + i]->chain : nowhere[1][i];
            sources[i] = data[is_used ? first + i : first];
        }
        both_kernel(lanes)(chains[0], chains[1], sources, blocks);
    }
    for (size_t i = 0; i < count; i++) {
        md5[i]->length += blocks * 128;
        sha512[i]->length += blocks * 128;
        rest[i] = data[i] + blocks * 128;
    }
    states_update(md5_plan, md5, rest, count, size - blocks * 128);
    states_update(sha512_plan, sha512, rest, count, size - blocks * 128);
}

void state_digest(const struct plan *plan, const struct hash_state *state, uint8_t digest[64])
{
    struct hash_state last = *state;
    const struct algorithm_facts *facts = &FACTS[state->algorithm];
    const size_t block = block_bytes(facts->family);
    const size_t count_bytes = block / 8;
    const size_t filled = (size_t)(state->length % block);
    const uint64_t bits = state->length << 3;
    uint8_t tail[2 * MOST_BLOCK] = {0};
    const size_t size = filled + 1 + count_bytes <= block ? block : 2 * block;
    memcpy(tail, state->partial, filled);
    tail[filled] = 0x80;
    for (size_t i = 0; i < 8; i++) {
        if (facts->family == MD5)
            tail[size - 8 + i] = (uint8_t)(bits >> (8 * i));
        else
            tail[size - 1 - i] = (uint8_t)(bits >> (8 * i));
    }
    if (facts->family == SHA512)
        tail[size - 9] = (uint8_t)(state->length >> 61);
    run_alone(plan, &last, tail, size / block);
    for (size_t i = 0; i < facts->digest_bytes; i++) {
        if (facts->family == MD5)
            digest[i] = (uint8_t)(last.chain.w32[i / 4] >> (8 * (i % 4)));
        else if (facts->family == SHA256)
            digest[i] = (uint8_t)(last.chain.w32[i / 4] >> (24 - 8 * (i % 4)));
        else
            digest[i] = (uint8_t)(last.chain.w64[i / 8] >> (56 - 8 * (i % 8)));
    }
}
