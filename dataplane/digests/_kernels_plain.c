/* Portable C: what every machine can run. */
#include "_constants.h"
#include "_kernels.h"
#include "_scalar.h"

#define NAME md5_x1_plain
#define TARGET
#define STREAMS 1
#include "_md5_scalar.h"

#define NAME md5_x2_plain
#define TARGET
#define STREAMS 2
#include "_md5_scalar.h"

#define NAME md5_x3_plain
#define TARGET
#define STREAMS 3
#include "_md5_scalar.h"

#define NAME md5_x4_plain
#define TARGET
#define STREAMS 4
#include "_md5_scalar.h"

#define NAME sha256_x1_plain
#define TARGET
#define LANES 1
#define BITS 32
#define V uint32_t
#define ADD WORD_ADD
#define SUB WORD_SUB
#define ROR WORD32_ROR
#define SHR WORD_SHR
#define SET WORD_SET
#define XOR3 WORD_XOR3
#define CH WORD_CH
#define MAJ WORD_MAJ
#define LOAD LOAD_SHA256
#include "_sha2.h"

#define NAME sha512_x1_plain
#define TARGET
#define LANES 1
#define BITS 64
#define V uint64_t
#define ADD WORD_ADD
#define SUB WORD_SUB
#define ROR WORD64_ROR
#define SHR WORD_SHR
#define SET WORD_SET
#define XOR3 WORD_XOR3
#define CH WORD_CH
#define MAJ WORD_MAJ
#define LOAD LOAD_SHA512
#include "_sha2.h"

#ifdef GLISSADE_X86
#define ON_X86(...) {__VA_ARGS__},
#else
#define ON_X86(...)
#endif

static int always(void) { return 1; }

const struct kernel KERNELS[] = {
    {MD5, 1, PLAIN, "md5 x1 plain", md5_x1_plain, always},
    {MD5, 2, PLAIN, "md5 x2 plain", md5_x2_plain, always},
    {MD5, 3, PLAIN, "md5 x3 plain", md5_x3_plain, always},
    {MD5, 4, PLAIN, "md5 x4 plain", md5_x4_plain, always},
    ON_X86(MD5, 1, AVX2, "md5 x1 bmi2", md5_x1_bmi2, has_bmi2)
    ON_X86(MD5, 2, AVX2, "md5 x2 bmi2", md5_x2_bmi2, has_bmi2)
    ON_X86(MD5, 3, AVX2, "md5 x3 bmi2", md5_x3_bmi2, has_bmi2)
    ON_X86(MD5, 4, AVX2, "md5 x4 bmi2", md5_x4_bmi2, has_bmi2)
    ON_X86(MD5, 1, AVX512, "md5 x1 avx512", md5_x1_avx512, has_avx512)
    ON_X86(MD5, 8, AVX2, "md5 x8 avx2", md5_x8_avx2, has_avx2)
    ON_X86(MD5, 8, AVX512, "md5 x8 avx512", md5_x8_avx512, has_avx512)
    ON_X86(MD5, 16, AVX512, "md5 x16 avx512", md5_x16_avx512, has_avx512)
    {SHA256, 1, PLAIN, "sha256 x1 plain", sha256_x1_plain, always},
    ON_X86(SHA256, 1, AVX2, "sha256 x1 sha-ni", sha256_x1_ni, has_sha)
    ON_X86(SHA256, 8, AVX2, "sha256 x8 avx2", sha256_x8_avx2, has_avx2)
    ON_X86(SHA256, 8, AVX512, "sha256 x8 avx512", sha256_x8_avx512, has_avx512)
    ON_X86(SHA256, 16, AVX512, "sha256 x16 avx512", sha256_x16_avx512, has_avx512)
    {SHA512, 1, PLAIN, "sha512 x1 plain", sha512_x1_plain, always},
    ON_X86(SHA512, 1, AVX2, "sha512 x1 bmi2", sha512_x1_bmi2, has_bmi2)
    ON_X86(SHA512, 1, AVX512, "sha512 x1 avx512", sha512_x1_avx512, has_avx512)
    ON_X86(SHA512, 4, AVX2, "sha512 x4 avx2", sha512_x4_avx2, has_avx2)
    ON_X86(SHA512, 4, AVX512, "sha512 x4 avx512", sha512_x4_avx512, has_avx512)
    ON_X86(SHA512, 8, AVX512, "sha512 x8 avx512", sha512_x8_avx512, has_avx512)
};
const size_t KERNEL_COUNT = sizeof KERNELS / sizeof KERNELS[0];

both_fn both_kernel(size_t lanes)
{
#ifdef GLISSADE_X86
    if (has_avx512() && lanes == 1)
        return md5_sha512_x1_avx512;
    if (has_avx512())
        return lanes == FEW_BOTH_LANES ? md5_sha512_x4_avx512 : md5_sha512_x8_avx512;
#endif
    (void)lanes;
    return NULL;
}
