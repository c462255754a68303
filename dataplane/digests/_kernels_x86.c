/* AVX2, AVX-512 and SHA-NI. Every function carries its target, so the file compiles without -m flags and runs only
 * what the CPU has (`is_supported`). Streams are read row by row and transposed in registers: no gathers. */
#include "_kernels.h"

#ifdef GLISSADE_X86

#include <cpuid.h>
#include <immintrin.h>

#include "_constants.h"
#include "_scalar.h"

#define T_BMI2 __attribute__((target("bmi,bmi2")))
#define T_AVX2 __attribute__((target("avx2,bmi,bmi2")))
#define T_AVX512 __attribute__((target("avx2,avx512f,avx512vl,avx512bw,avx512dq,bmi,bmi2")))
#define T_SHA __attribute__((target("sha,sse4.1,ssse3")))
#define INLINE static inline __attribute__((always_inline))

int has_bmi2(void) { return __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"); }

int has_avx2(void) { return has_bmi2() && __builtin_cpu_supports("avx2"); }

int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}

int has_sha(void)
{
    unsigned a, b, c, d;
    /* Asked from the CPU itself: not every compiler knows "sha" as a name for __builtin_cpu_supports. */
    return __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("ssse3") &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1);
}

/* ---- transposes: rows of streams to vectors of words ---------------------------------------------------- */

/* 8 streams, 8 words of 32 bits each. */
T_AVX2 INLINE void rows_8x32(__m256i out[8], const uint8_t *const data[], size_t at)
{
    __m256i r[8], s[8];
    for (int i = 0; i < 8; i++)
        r[i] = _mm256_loadu_si256((const __m256i *)(const void *)(data[i] + at));
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(s[i], s[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(s[i], s[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(s[i + 1], s[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(s[i + 1], s[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        out[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
}

/* 16 streams, 16 words of 32 bits each. */
T_AVX512 INLINE void rows_16x32(__m512i out[16], const uint8_t *const data[], size_t at)
{
    __m512i r[16], s[16];
    for (int i = 0; i < 16; i++)
        r[i] = _mm512_loadu_si512(data[i] + at);
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(s[i], s[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(s[i], s[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(s[i + 1], s[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(s[i + 1], s[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        s[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        s[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        s[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        s[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        out[i] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88);
        out[i + 8] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd);
    }
}

/* 4 streams, 4 words of 64 bits each. */
T_AVX2 INLINE void rows_4x64(__m256i out[4], const uint8_t *const data[], size_t at)
{
    __m256i r[4], s[4];
    for (int i = 0; i < 4; i++)
        r[i] = _mm256_loadu_si256((const __m256i *)(const void *)(data[i] + at));
    for (int i = 0; i < 4; i += 2) {
        s[i] = _mm256_unpacklo_epi64(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_epi64(r[i], r[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        out[i] = _mm256_permute2x128_si256(s[i], s[i + 2], 0x20);
        out[i + 2] = _mm256_permute2x128_si256(s[i], s[i + 2], 0x31);
    }
}

/* 8 streams, 8 words of 64 bits each. */
T_AVX512 INLINE void rows_8x64(__m512i out[8], const uint8_t *const data[], size_t at)
{
    __m512i r[8], s[8];
    for (int i = 0; i < 8; i++)
        r[i] = _mm512_loadu_si512(data[i] + at);
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm512_unpacklo_epi64(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi64(r[i], r[i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[i] = _mm512_shuffle_i64x2(s[i], s[i + 2], 0x88);
        r[i + 2] = _mm512_shuffle_i64x2(s[i], s[i + 2], 0xdd);
        r[i + 4] = _mm512_shuffle_i64x2(s[i + 4], s[i + 6], 0x88);
        r[i + 6] = _mm512_shuffle_i64x2(s[i + 4], s[i + 6], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        out[i] = _mm512_shuffle_i64x2(r[i], r[i + 4], 0x88);
        out[i + 4] = _mm512_shuffle_i64x2(r[i], r[i + 4], 0xdd);
    }
}

#define SWAP32_BYTES 12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3
#define SWAP64_BYTES 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7

T_AVX2 INLINE void md5_rows_8(__m256i m[16], const uint8_t *const data[], size_t at)
{
    rows_8x32(m, data, at);
    rows_8x32(m + 8, data, at + 32);
}

T_AVX2 INLINE void sha256_rows_8(__m256i w[16], const uint8_t *const data[], size_t at)
{
    const __m256i swap = _mm256_broadcastsi128_si256(_mm_set_epi8(SWAP32_BYTES));
    md5_rows_8(w, data, at);
    for (int i = 0; i < 16; i++)
        w[i] = _mm256_shuffle_epi8(w[i], swap);
}

T_AVX512 INLINE void sha256_rows_16(__m512i w[16], const uint8_t *const data[], size_t at)
{
    const __m512i swap = _mm512_broadcast_i32x4(_mm_set_epi8(SWAP32_BYTES));
    rows_16x32(w, data, at);
    for (int i = 0; i < 16; i++)
        w[i] = _mm512_shuffle_epi8(w[i], swap);
}

T_AVX2 INLINE __m256i swap_4x64(__m256i words)
{
    return _mm256_shuffle_epi8(words, _mm256_broadcastsi128_si256(_mm_set_epi8(SWAP64_BYTES)));
}

T_AVX512 INLINE __m512i swap_8x64(__m512i words)
{
    return _mm512_shuffle_epi8(words, _mm512_broadcast_i32x4(_mm_set_epi8(SWAP64_BYTES)));
}

/* 4 streams, 16 words of 64 bits each. */
T_AVX2 INLINE void rows_4x128(__m256i out[16], const uint8_t *const data[], size_t at)
{
    for (int i = 0; i < 16; i += 4)
        rows_4x64(out + i, data, at + 8 * (size_t)i);
}

/* 8 streams, 16 words of 64 bits each. */
T_AVX512 INLINE void rows_8x128(__m512i out[16], const uint8_t *const data[], size_t at)
{
    rows_8x64(out, data, at);
    rows_8x64(out + 8, data, at + 64);
}

T_AVX2 INLINE void sha512_rows_4(__m256i w[16], const uint8_t *const data[], size_t at)
{
    rows_4x128(w, data, at);
    for (int i = 0; i < 16; i++)
        w[i] = swap_4x64(w[i]);
}

T_AVX512 INLINE void sha512_rows_8(__m512i w[16], const uint8_t *const data[], size_t at)
{
    rows_8x128(w, data, at);
    for (int i = 0; i < 16; i++)
        w[i] = swap_8x64(w[i]);
}

/* ---- AVX2 ------------------------------------------------------------------------------------------------ */

#define AND2(x, y) _mm256_and_si256(x, y)
#define OR2(x, y) _mm256_or_si256(x, y)
#define XOR2(x, y) _mm256_xor_si256(x, y)
#define ANDNOT2(x, y) _mm256_andnot_si256(x, y)

#define NAME md5_x8_avx2
#define TARGET T_AVX2
#define LANES 8
#define V __m256i
#define ADD _mm256_add_epi32
#define ROL(x, n) OR2(_mm256_slli_epi32(x, n), _mm256_srli_epi32(x, 32 - (n)))
#define SET(k) _mm256_set1_epi32((int)(k))
#define ADD_F(t, x, y, z) ADD(t, XOR2(AND2(XOR2(y, z), x), z))
#define ADD_G(t, x, y, z) ADD(ADD(t, ANDNOT2(z, y)), AND2(z, x))
#define ADD_H(t, x, y, z) ADD(t, XOR2(XOR2(y, z), x))
#define ADD_I(t, x, y, z) ADD(t, XOR2(y, OR2(x, XOR2(z, SET(0xffffffffu)))))
#define LOAD md5_rows_8
#include "_md5.h"

#define NAME sha256_x8_avx2
#define TARGET T_AVX2
#define LANES 8
#define BITS 32
#define V __m256i
#define ADD _mm256_add_epi32
#define SUB _mm256_sub_epi32
#define ROR(x, n) OR2(_mm256_srli_epi32(x, n), _mm256_slli_epi32(x, 32 - (n)))
#define SHR _mm256_srli_epi32
#define SET(k) _mm256_set1_epi32((int)(k))
#define XOR3(x, y, z) XOR2(XOR2(x, y), z)
#define CH(x, y, z) XOR2(AND2(XOR2(y, z), x), z)
#define MAJ(x, y, z) OR2(AND2(x, y), AND2(OR2(x, y), z))
#define LOAD sha256_rows_8
#include "_sha2.h"

#define NAME sha512_x4_avx2
#define TARGET T_AVX2
#define LANES 4
#define BITS 64
#define V __m256i
#define ADD _mm256_add_epi64
#define SUB _mm256_sub_epi64
#define ROR(x, n) OR2(_mm256_srli_epi64(x, n), _mm256_slli_epi64(x, 64 - (n)))
#define SHR _mm256_srli_epi64
#define SET(k) _mm256_set1_epi64x((long long)(k))
#define XOR3(x, y, z) XOR2(XOR2(x, y), z)
#define CH(x, y, z) XOR2(AND2(XOR2(y, z), x), z)
#define MAJ(x, y, z) OR2(AND2(x, y), AND2(OR2(x, y), z))
#define LOAD sha512_rows_4
#include "_sha2.h"

/* ---- AVX-512: one instruction for any function of three words (vpternlog), one for a rotation ------------ */

enum { XOR_3 = 0x96, CHOOSE = 0xca, MAJORITY = 0xe8, MD5_G = 0xe4, MD5_I = 0x39 };

#define NAME md5_x16_avx512
#define TARGET T_AVX512
#define LANES 16
#define V __m512i
#define ADD _mm512_add_epi32
#define ROL _mm512_rol_epi32
#define SET(k) _mm512_set1_epi32((int)(k))
#define ADD_F(t, x, y, z) ADD(t, _mm512_ternarylogic_epi32(x, y, z, CHOOSE))
#define ADD_G(t, x, y, z) ADD(t, _mm512_ternarylogic_epi32(x, y, z, MD5_G))
#define ADD_H(t, x, y, z) ADD(t, _mm512_ternarylogic_epi32(x, y, z, XOR_3))
#define ADD_I(t, x, y, z) ADD(t, _mm512_ternarylogic_epi32(x, y, z, MD5_I))
#define LOAD rows_16x32
#include "_md5.h"

#define NAME md5_x8_avx512
#define TARGET T_AVX512
#define LANES 8
#define V __m256i
#define ADD _mm256_add_epi32
#define ROL _mm256_rol_epi32
#define SET(k) _mm256_set1_epi32((int)(k))
#define ADD_F(t, x, y, z) ADD(t, _mm256_ternarylogic_epi32(x, y, z, CHOOSE))
#define ADD_G(t, x, y, z) ADD(t, _mm256_ternarylogic_epi32(x, y, z, MD5_G))
#define ADD_H(t, x, y, z) ADD(t, _mm256_ternarylogic_epi32(x, y, z, XOR_3))
#define ADD_I(t, x, y, z) ADD(t, _mm256_ternarylogic_epi32(x, y, z, MD5_I))
#define LOAD md5_rows_8
#include "_md5.h"

/* One stream in the lowest element: shorter latency per step than the scalar form on some CPUs. */
T_AVX512 INLINE void md5_row_1(__m128i m[16], const uint8_t *const data[], size_t at)
{
    for (int i = 0; i < 16; i++)
        m[i] = _mm_cvtsi32_si128((int)read32(data[0] + at + 4 * (size_t)i));
}

/* In the union of the template this vector overlaps one word only; the other elements are never looked at. */
#define NAME md5_x1_avx512
#define TARGET T_AVX512
#define LANES 4
#define V __m128i
#define ADD _mm_add_epi32
#define ROL _mm_rol_epi32
#define SET(k) _mm_set1_epi32((int)(k))
#define ADD_F(t, x, y, z) ADD(t, _mm_ternarylogic_epi32(x, y, z, CHOOSE))
#define ADD_G(t, x, y, z) ADD(t, _mm_ternarylogic_epi32(x, y, z, MD5_G))
#define ADD_H(t, x, y, z) ADD(t, _mm_ternarylogic_epi32(x, y, z, XOR_3))
#define ADD_I(t, x, y, z) ADD(t, _mm_ternarylogic_epi32(x, y, z, MD5_I))
#define LOAD md5_row_1
#define FILLED_LANES 1
#include "_md5.h"

#define NAME sha256_x16_avx512
#define TARGET T_AVX512
#define LANES 16
#define BITS 32
#define V __m512i
#define ADD _mm512_add_epi32
#define SUB _mm512_sub_epi32
#define ROR _mm512_ror_epi32
#define SHR _mm512_srli_epi32
#define SET(k) _mm512_set1_epi32((int)(k))
#define XOR3(x, y, z) _mm512_ternarylogic_epi32(x, y, z, XOR_3)
#define CH(x, y, z) _mm512_ternarylogic_epi32(x, y, z, CHOOSE)
#define MAJ(x, y, z) _mm512_ternarylogic_epi32(x, y, z, MAJORITY)
#define LOAD sha256_rows_16
#include "_sha2.h"

#define NAME sha256_x8_avx512
#define TARGET T_AVX512
#define LANES 8
#define BITS 32
#define V __m256i
#define ADD _mm256_add_epi32
#define SUB _mm256_sub_epi32
#define ROR _mm256_ror_epi32
#define SHR _mm256_srli_epi32
#define SET(k) _mm256_set1_epi32((int)(k))
#define XOR3(x, y, z) _mm256_ternarylogic_epi32(x, y, z, XOR_3)
#define CH(x, y, z) _mm256_ternarylogic_epi32(x, y, z, CHOOSE)
#define MAJ(x, y, z) _mm256_ternarylogic_epi32(x, y, z, MAJORITY)
#define LOAD sha256_rows_8
#include "_sha2.h"

#define NAME sha512_x8_avx512
#define TARGET T_AVX512
#define LANES 8
#define BITS 64
#define V __m512i
#define ADD _mm512_add_epi64
#define SUB _mm512_sub_epi64
#define ROR _mm512_ror_epi64
#define SHR _mm512_srli_epi64
#define SET(k) _mm512_set1_epi64((long long)(k))
#define XOR3(x, y, z) _mm512_ternarylogic_epi64(x, y, z, XOR_3)
#define CH(x, y, z) _mm512_ternarylogic_epi64(x, y, z, CHOOSE)
#define MAJ(x, y, z) _mm512_ternarylogic_epi64(x, y, z, MAJORITY)
#define LOAD sha512_rows_8
#include "_sha2.h"

#define NAME sha512_x4_avx512
#define TARGET T_AVX512
#define LANES 4
#define BITS 64
#define V __m256i
#define ADD _mm256_add_epi64
#define SUB _mm256_sub_epi64
#define ROR _mm256_ror_epi64
#define SHR _mm256_srli_epi64
#define SET(k) _mm256_set1_epi64x((long long)(k))
#define XOR3(x, y, z) _mm256_ternarylogic_epi64(x, y, z, XOR_3)
#define CH(x, y, z) _mm256_ternarylogic_epi64(x, y, z, CHOOSE)
#define MAJ(x, y, z) _mm256_ternarylogic_epi64(x, y, z, MAJORITY)
#define LOAD sha512_rows_4
#include "_sha2.h"

/* ---- md5 and sha512 together ------------------------------------------------------------------------------- */

/* The words of sha512 are those of md5 in pairs: one instruction for a pair instead of a transposition of its own. */
T_AVX512 INLINE __m256i halves_4x64(__m256i words)
{
    return _mm256_permutevar8x32_epi32(words, _mm256_set_epi32(7, 5, 3, 1, 6, 4, 2, 0));
}

T_AVX512 INLINE __m512i halves_8x64(__m512i words)
{
    return _mm512_permutexvar_epi32(_mm512_set_epi32(15, 13, 11, 9, 7, 5, 3, 1, 14, 12, 10, 8, 6, 4, 2, 0), words);
}

#define NAME md5_sha512_x8_avx512
#define LANES 8
#define VM __m256i
#define M(op) _mm256_##op
#define VS __m512i
#define S(op) _mm512_##op
#define SET64 _mm512_set1_epi64
#define ROWS rows_8x128
#define SWAP swap_8x64
#define HALVES halves_8x64
#include "_md5_sha512.h"

/* Half the lanes in vectors of half the length: where those cost half, few streams get nearly the speed of many. */
#define NAME md5_sha512_x4_avx512
#define LANES 4
#define VM __m128i
#define M(op) _mm_##op
#define VS __m256i
#define S(op) _mm256_##op
#define SET64 _mm256_set1_epi64x
#define ROWS rows_4x128
#define SWAP swap_4x64
#define HALVES halves_4x64
#include "_md5_sha512.h"

#include "_md5_sha512_x1.h"

/* ---- a few streams of md5: BMI has the and-not that its functions need ------------------------------------ */

#define NAME md5_x1_bmi2
#define TARGET T_BMI2
#define STREAMS 1
#include "_md5_scalar.h"

#define NAME md5_x2_bmi2
#define TARGET T_BMI2
#define STREAMS 2
#include "_md5_scalar.h"

#define NAME md5_x3_bmi2
#define TARGET T_BMI2
#define STREAMS 3
#include "_md5_scalar.h"

#define NAME md5_x4_bmi2
#define TARGET T_BMI2
#define STREAMS 4
#include "_md5_scalar.h"

/* ---- one stream of sha512 and sha256 ---------------------------------------------------------------------- */

#define NAME sha512_x1_bmi2
#define TARGET T_BMI2
#define LANES 1
#define BITS 64
#define V uint64_t
#define ADD WORD_ADD
#define SUB WORD_SUB
#define ROR WORD64_ROR
#define SHR WORD_SHR
#define SET WORD_SET
#define XOR3 WORD_XOR3
#define CH(x, y, z) (((x) & (y)) + (~(x) & (z)))
#define MAJ WORD_MAJ
#define LOAD LOAD_SHA512
#include "_sha2.h"

/* The rounds on the scalar ports; the message schedule two words at a time on the vector ports. */
#define SCALAR_ROUND(a, b, c, d, e, f, g, h, i)                                                                    \
    h = (h + kw[i]) + (~(e) & (g));                                                                                \
    h = (h + ((e) & (f))) + (WORD64_ROR(e, 14) ^ WORD64_ROR(e, 18) ^ WORD64_ROR(e, 41));                           \
    d += h;                                                                                                        \
    h = (h + (((a) & (b)) | (((a) | (b)) & (c)))) + (WORD64_ROR(a, 28) ^ WORD64_ROR(a, 34) ^ WORD64_ROR(a, 39));
#define PAIR(i)                                                                                                    \
    do {                                                                                                           \
        const __m128i w1 = _mm_alignr_epi8(w[(i + 1) & 7], w[i], 8);                                               \
        const __m128i w9 = _mm_alignr_epi8(w[(i + 5) & 7], w[(i + 4) & 7], 8);                                     \
        const __m128i w14 = w[(i + 7) & 7];                                                                        \
        const __m128i s0 = _mm_ternarylogic_epi64(_mm_ror_epi64(w1, 1), _mm_ror_epi64(w1, 8),                      \
                                                  _mm_srli_epi64(w1, 7), XOR_3);                                   \
        const __m128i s1 = _mm_ternarylogic_epi64(_mm_ror_epi64(w14, 19), _mm_ror_epi64(w14, 61),                  \
                                                  _mm_srli_epi64(w14, 6), XOR_3);                                  \
        w[i] = _mm_add_epi64(_mm_add_epi64(_mm_add_epi64(w[i], w9), s0), s1);                                      \
    } while (0);
#define KEEP(i)                                                                                                    \
    _mm_store_si128((__m128i *)(void *)(next + 2 * (i)),                                                           \
                    _mm_add_epi64(w[i], _mm_load_si128((const __m128i *)(const void *)(K_SHA512 + round + 2 * (i)))));

T_AVX512 void sha512_x1_avx512(void *const chains[], const uint8_t *const data[], size_t blocks)
{
    const __m128i swap = _mm_set_epi8(SWAP64_BYTES);
    uint64_t *chain = chains[0];
    const uint8_t *from = data[0];
    for (; blocks > 0; blocks--, from += 128) {
        _Alignas(64) uint64_t kws[80];
        __m128i w[8];
        uint64_t a = chain[0], b = chain[1], c = chain[2], d = chain[3];
        uint64_t e = chain[4], f = chain[5], g = chain[6], h = chain[7];
        uint64_t *next = kws;
        size_t round = 0;
        for (int i = 0; i < 8; i++) {
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(from + 16 * i)), swap);
            KEEP(i)
        }
        for (round = 16; round <= 80; round += 16) {
            const uint64_t *kw = kws + round - 16;
            next = kws + round;
#define TWO(i, a, b, c, d, e, f, g, h)                                                                             \
    if (round < 80) {                                                                                              \
        PAIR(i)                                                                                                    \
        KEEP(i)                                                                                                    \
    }                                                                                                              \
    SCALAR_ROUND(a, b, c, d, e, f, g, h, 2 * (i))                                                                  \
    SCALAR_ROUND(h, a, b, c, d, e, f, g, 2 * (i) + 1)
            TWO(0, a, b, c, d, e, f, g, h)
            TWO(1, g, h, a, b, c, d, e, f)
            TWO(2, e, f, g, h, a, b, c, d)
            TWO(3, c, d, e, f, g, h, a, b)
            TWO(4, a, b, c, d, e, f, g, h)
            TWO(5, g, h, a, b, c, d, e, f)
            TWO(6, e, f, g, h, a, b, c, d)
            TWO(7, c, d, e, f, g, h, a, b)
#undef TWO
        }
        chain[0] += a;
        chain[1] += b;
        chain[2] += c;
        chain[3] += d;
        chain[4] += e;
        chain[5] += f;
        chain[6] += g;
        chain[7] += h;
    }
}

/* sha256 by the CPU's own instructions. They keep the chaining value as (a, b, e, f) and (c, d, g, h). */
T_SHA void sha256_x1_ni(void *const chains[], const uint8_t *const data[], size_t blocks)
{
    const __m128i swap = _mm_set_epi8(SWAP32_BYTES);
    uint32_t *chain = chains[0];
    const uint8_t *from = data[0];
    __m128i abcd = _mm_loadu_si128((const __m128i *)(const void *)chain);
    __m128i efgh = _mm_loadu_si128((const __m128i *)(const void *)(chain + 4));
    abcd = _mm_shuffle_epi32(abcd, 0xb1);
    efgh = _mm_shuffle_epi32(efgh, 0x1b);
    __m128i abef = _mm_alignr_epi8(abcd, efgh, 8);
    __m128i cdgh = _mm_blend_epi16(efgh, abcd, 0xf0);
    for (; blocks > 0; blocks--, from += 64) {
        const __m128i abef0 = abef, cdgh0 = cdgh;
        __m128i w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(from + 16 * i)), swap);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            __m128i now = w[i & 3];
            __m128i kw = _mm_add_epi32(now, _mm_load_si128((const __m128i *)(const void *)(K_SHA256 + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, kw);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(kw, 0x0e));
            if (i < 12) {
                const __m128i w9 = _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4);
                const __m128i early = _mm_add_epi32(_mm_sha256msg1_epu32(now, w[(i + 1) & 3]), w9);
                w[i & 3] = _mm_sha256msg2_epu32(early, w[(i + 3) & 3]);
            }
        }
        abef = _mm_add_epi32(abef, abef0);
        cdgh = _mm_add_epi32(cdgh, cdgh0);
    }
    abef = _mm_shuffle_epi32(abef, 0x1b);
    cdgh = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)(void *)chain, _mm_blend_epi16(abef, cdgh, 0xf0));
    _mm_storeu_si128((__m128i *)(void *)(chain + 4), _mm_alignr_epi8(cdgh, abef, 8));
}

#endif
