/* The kernel for md5 and sha512 of one stream. Both wait for their own results nearly all the time, each on ports of
 * its own. In general registers, where a step takes least: md5, and of sha512 the words a to d. On the vector ports: the
 * words e to h, and those of the message. All of sha512 there was a tenth slower: it needs six rotations in a row for
 * each round, and only two of them can begin in a cycle. Together they take 4 % more than md5 alone.
 *
 * A letter stands for a word of the chain, as `_w` in a general register and as `_v` in a vector: a to d have the one,
 * e to h the other; of a vector's two words the upper one means nothing. A vector of the message holds two words.
 */
#define STEP(FUNCTION, a, b, c, d, g, i, s)                                                                        \
    a += LITTLE32(read32(block + 4 * (g))) + K_MD5[i];                                                             \
    a = STEP_##FUNCTION(a, b, c, d);                                                                               \
    a = b + WORD_ROL(a, s);
#define STEP_CHOOSE WORD_ADD_F
#define STEP_MD5_G WORD_ADD_G
#define STEP_XOR_3 WORD_ADD_H
#define STEP_MD5_I WORD_ADD_I
#define PLUS _mm_add_epi64
#define TURN _mm_ror_epi64
#define TO_VECTOR(x) _mm_cvtsi64_si128((long long)(x))
#define FROM_VECTOR(x) ((uint64_t)_mm_cvtsi128_si64(x))
#define THREE(x, y, z) _mm_ternarylogic_epi64(x, y, z, XOR_3)
/* Two words at once, after the second of them was used. */
#define NEXT(i)                                                                                                    \
    if ((i) % 2 == 1) {                                                                                            \
        const __m128i w1 = _mm_alignr_epi8(w[((i) / 2 + 1) & 7], w[(i) / 2], 8);                                   \
        const __m128i w9 = _mm_alignr_epi8(w[((i) / 2 + 5) & 7], w[((i) / 2 + 4) & 7], 8);                         \
        const __m128i w14 = w[((i) / 2 + 7) & 7];                                                                  \
        const __m128i s0 = THREE(TURN(w1, 1), TURN(w1, 8), _mm_srli_epi64(w1, 7));                                 \
        const __m128i s1 = THREE(TURN(w14, 19), TURN(w14, 61), _mm_srli_epi64(w14, 6));                            \
        w[(i) / 2] = PLUS(PLUS(PLUS(w[(i) / 2], w9), s0), s1);                                                     \
    }
/* Nothing comes sixteen rounds after the last ones. */
#define LATE_NEXT(i)                                                                                               \
    if (half == 0) {                                                                                               \
        NEXT(i)                                                                                                    \
    }
/* e goes on as soon as d and its own functions are there; a follows it, and comes back as d three rounds later. */
#define ROUND(a, b, c, d, e, f, g, h, i, n)                                                                        \
    do {                                                                                                           \
        if ((n) % 2 == 0)                                                                                          \
            sums = PLUS(w[(i) / 2], _mm_load_si128((const __m128i *)(const void *)(k + (n))));                     \
        else                                                                                                       \
            sums = _mm_unpackhi_epi64(sums, sums);                                                                 \
        d##_v = PLUS(PLUS(h##_v, sums), TO_VECTOR(d##_w));                                                         \
        d##_v = PLUS(d##_v, _mm_ternarylogic_epi64(e##_v, f##_v, g##_v, CHOOSE));                                  \
        d##_v = PLUS(d##_v, THREE(TURN(e##_v, 14), TURN(e##_v, 18), TURN(e##_v, 41)));                             \
        h##_w = WORD_MAJ(a##_w, b##_w, c##_w) - d##_w;                                                             \
        h##_w += WORD64_ROR(a##_w, 28) ^ WORD64_ROR(a##_w, 34) ^ WORD64_ROR(a##_w, 39);                            \
        h##_w += FROM_VECTOR(d##_v);                                                                               \
    } while (0);

T_AVX512 void md5_sha512_x1_avx512(void *const md5_chains[], void *const sha512_chains[], const uint8_t *const data[],
                                   size_t blocks)
{
    const __m128i swap = _mm_set_epi8(SWAP64_BYTES);
    uint32_t *md5 = md5_chains[0];
    uint64_t *sha = sha512_chains[0];
    const uint8_t *block = data[0];
    uint32_t A = md5[0], B = md5[1], C = md5[2], D = md5[3];
    for (; blocks > 0; blocks--) {
        __m128i w[8], sums;
        for (int i = 0; i < 8; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(block + 16 * i)), swap);
        uint64_t a_w = sha[0], b_w = sha[1], c_w = sha[2], d_w = sha[3], e_w, f_w, g_w, h_w;
        __m128i a_v, b_v, c_v, d_v;
        __m128i e_v = TO_VECTOR(sha[4]), f_v = TO_VECTOR(sha[5]), g_v = TO_VECTOR(sha[6]), h_v = TO_VECTOR(sha[7]);
        const uint64_t *k = K_SHA512;
        for (int half = 0; half < 2; half++, k += 40, block += 64) {
            FROM_MEMORY(k);
#include "_md5_sha512_deal.h"
            A = md5[0] += A;
            B = md5[1] += B;
            C = md5[2] += C;
            D = md5[3] += D;
            /* 40 is two and a half times 16: the next pair is the one in the middle. */
            for (int i = 0; i < 4; i++) {
                const __m128i first = w[i];
                w[i] = w[i + 4];
                w[i + 4] = first;
            }
        }
        sha[0] += a_w;
        sha[1] += b_w;
        sha[2] += c_w;
        sha[3] += d_w;
        sha[4] += FROM_VECTOR(e_v);
        sha[5] += FROM_VECTOR(f_v);
        sha[6] += FROM_VECTOR(g_v);
        sha[7] += FROM_VECTOR(h_v);
    }
}

#undef STEP
#undef STEP_CHOOSE
#undef STEP_MD5_G
#undef STEP_XOR_3
#undef STEP_MD5_I
#undef PLUS
#undef TURN
#undef THREE
#undef TO_VECTOR
#undef FROM_VECTOR
#undef NEXT
#undef LATE_NEXT
#undef ROUND
