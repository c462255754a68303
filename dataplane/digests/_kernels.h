/* The compression kernels and the table of them.
 *
 * A kernel hashes the same number of whole blocks of `lanes` different streams side by side. chains[i] is the
 * chaining value of stream i (uint32_t[4] for md5, uint32_t[8] for sha256, uint64_t[8] for sha512), data[i] its
 * bytes, of any alignment. It touches nothing else and can run in any number of threads at once.
 */
#ifndef GLISSADE_KERNELS_H
#define GLISSADE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define MOST_LANES 16
#define MOST_BLOCK 128

typedef void (*kernel_fn)(void *const chains[], const uint8_t *const data[], size_t blocks);

enum family { MD5, SHA256, SHA512, FAMILIES };
enum level { PLAIN, AVX2, AVX512 };

struct kernel {
    enum family family;
    unsigned lanes;
    enum level level;
    const char *name;
    kernel_fn run;
    int (*is_supported)(void);
};

extern const struct kernel KERNELS[];
extern const size_t KERNEL_COUNT;

/* The kernel that does md5 and sha512 of so many streams (8, 4 or 1) together, where the CPU can run one; else NULL. */
#define BOTH_LANES 8
#define FEW_BOTH_LANES 4
typedef void (*both_fn)(void *const md5_chains[], void *const sha512_chains[], const uint8_t *const data[],
                        size_t blocks);
both_fn both_kernel(size_t lanes);

static inline size_t block_bytes(enum family family) { return family == SHA512 ? 128 : 64; }

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define GLISSADE_X86 1
int has_bmi2(void);
int has_avx2(void);
int has_avx512(void);
int has_sha(void);
#define DECLARE(name) void name(void *const chains[], const uint8_t *const data[], size_t blocks)
DECLARE(md5_x1_bmi2);
DECLARE(md5_x2_bmi2);
DECLARE(md5_x3_bmi2);
DECLARE(md5_x4_bmi2);
DECLARE(md5_x8_avx2);
DECLARE(md5_x1_avx512);
DECLARE(md5_x8_avx512);
DECLARE(md5_x16_avx512);
DECLARE(sha256_x1_ni);
DECLARE(sha256_x8_avx2);
DECLARE(sha256_x8_avx512);
DECLARE(sha256_x16_avx512);
DECLARE(sha512_x1_bmi2);
DECLARE(sha512_x1_avx512);
DECLARE(sha512_x4_avx2);
DECLARE(sha512_x4_avx512);
DECLARE(sha512_x8_avx512);
#undef DECLARE
/* md5 and sha512 of the same bytes; `blocks` of 128 bytes. */
void md5_sha512_x1_avx512(void *const md5_chains[], void *const sha512_chains[], const uint8_t *const data[],
                          size_t blocks);
void md5_sha512_x4_avx512(void *const md5_chains[], void *const sha512_chains[], const uint8_t *const data[],
                          size_t blocks);
void md5_sha512_x8_avx512(void *const md5_chains[], void *const sha512_chains[], const uint8_t *const data[],
                          size_t blocks);
#endif

void md5_x1_plain(void *const chains[], const uint8_t *const data[], size_t blocks);
void md5_x2_plain(void *const chains[], const uint8_t *const data[], size_t blocks);
void md5_x3_plain(void *const chains[], const uint8_t *const data[], size_t blocks);
void md5_x4_plain(void *const chains[], const uint8_t *const data[], size_t blocks);
void sha256_x1_plain(void *const chains[], const uint8_t *const data[], size_t blocks);
void sha512_x1_plain(void *const chains[], const uint8_t *const data[], size_t blocks);

#endif
