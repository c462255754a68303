/* A kernel for md5 and sha512 of the same bytes of several streams: two blocks of md5 beside one of sha512. md5 waits
 * for its own results nearly all the time, sha512 fills the ports: side by side they take hardly more than md5 alone.
 * Included once per width, with these defined:
 *
 *   NAME LANES             the function and its streams
 *   VM M(op)               a vector of LANES 32-bit words, and the intrinsics on it by the end of their names
 *   VS S(op) SET64         the same of 64-bit words; SET64(k) is one word everywhere
 *   ROWS(v, data, at)      VS v[16]: the words of the block at that offset as memory has them, one stream per element
 *   SWAP(v)                the bytes of every word of a VS the other way round
 *   HALVES(v)              the lower 32 bits of every word of a VS, then the upper ones
 *
 * The lines are the two algorithms in their order, dealt like cards (_md5_sha512_deal.h). A step is four instructions
 * behind the one before it. The 128 steps of a block are the time it takes, if at no place they wait for anything else.
 * That is twice 64 steps and 40 rounds; written out in full it would be 30 KiB of code, nearly all of the instruction
 * cache, and three times as slow whenever something else runs on the core.
 */
#define STEP(FUNCTION, a, b, c, d, g, i, s)                                                                        \
    a = M(add_epi32)(M(add_epi32)(a, block[g]), M(set1_epi32)((int)md5_k[i]));                                     \
    a = M(add_epi32)(a, M(ternarylogic_epi32)(b, c, d, FUNCTION));                                                 \
    a = M(add_epi32)(b, M(rol_epi32)(a, s));
#define ADD_UP_MD5                                                                                                 \
    A = md5.v[0] = M(add_epi32)(md5.v[0], A);                                                                      \
    B = md5.v[1] = M(add_epi32)(md5.v[1], B);                                                                      \
    C = md5.v[2] = M(add_epi32)(md5.v[2], C);                                                                      \
    D = md5.v[3] = M(add_epi32)(md5.v[3], D);
#define PLUS S(add_epi64)
#define THREE(x, y, z) S(ternarylogic_epi64)(x, y, z, XOR_3)
#define TURN S(ror_epi64)
/* The word of sixteen rounds later, once this round has used its own. */
#define NEXT(i)                                                                                                    \
    w[i] = PLUS(PLUS(w[i], w[(i + 9) & 15]), THREE(TURN(w[(i + 1) & 15], 1), TURN(w[(i + 1) & 15], 8),             \
                                                   S(srli_epi64)(w[(i + 1) & 15], 7)));                            \
    w[i] = PLUS(w[i], THREE(TURN(w[(i + 14) & 15], 19), TURN(w[(i + 14) & 15], 61),                                \
                            S(srli_epi64)(w[(i + 14) & 15], 6)));
/* Nothing comes sixteen rounds after the last ones. */
#define LATE_NEXT(i)                                                                                               \
    if (half == 0) {                                                                                               \
        NEXT(i)                                                                                                    \
    }
/* The fewest additions. Others would make the chains shorter (_sha2.h), but those of md5 are longer anyway. */
#define ROUND(a, b, c, d, e, f, g, h, i, n)                                                                        \
    do {                                                                                                           \
        VS sum = PLUS(h, PLUS(w[i], SET64((long long)k[n])));                                                      \
        sum = PLUS(sum, S(ternarylogic_epi64)(e, f, g, CHOOSE));                                                   \
        sum = PLUS(sum, THREE(TURN(e, 14), TURN(e, 18), TURN(e, 41)));                                             \
        d = PLUS(d, sum);                                                                                          \
        h = PLUS(S(ternarylogic_epi64)(a, b, c, MAJORITY), THREE(TURN(a, 28), TURN(a, 34), TURN(a, 39)));          \
        h = PLUS(h, sum);                                                                                          \
    } while (0);

T_AVX512 void NAME(void *const md5_chains[], void *const sha512_chains[], const uint8_t *const data[], size_t blocks)
{
    union {
        VM v[4];
        uint32_t w[4][LANES];
    } md5;
    union {
        VS v[8];
        uint64_t w[8][LANES];
    } sha;
    for (int lane = 0; lane < LANES; lane++) {
        for (int word = 0; word < 4; word++)
            md5.w[word][lane] = ((const uint32_t *)md5_chains[lane])[word];
        for (int word = 0; word < 8; word++)
            sha.w[word][lane] = ((const uint64_t *)sha512_chains[lane])[word];
    }
    VM A = md5.v[0], B = md5.v[1], C = md5.v[2], D = md5.v[3];
    for (size_t at = 0; blocks > 0; blocks--, at += 128) {
        VS w[16];
        union {
            VS pair[16];
            VM word[32];
        } m;
        ROWS(w, data, at);
        for (int i = 0; i < 16; i++)
            m.pair[i] = HALVES(w[i]);
        for (int i = 0; i < 16; i++)
            w[i] = SWAP(w[i]);
        VS a = sha.v[0], b = sha.v[1], c = sha.v[2], d = sha.v[3];
        VS e = sha.v[4], f = sha.v[5], g = sha.v[6], h = sha.v[7];
        const uint64_t *k = K_SHA512;
        for (int half = 0; half < 2; half++, k += 40) {
            const VM *block = m.word + 16 * half;
            const uint32_t *md5_k = K_MD5;
            FROM_MEMORY(k);
            FROM_MEMORY(md5_k);
#include "_md5_sha512_deal.h"
            ADD_UP_MD5
            /* 40 is two and a half times 16: the next word is the one in the middle. */
            for (int i = 0; i < 8; i++) {
                const VS first = w[i];
                w[i] = w[i + 8];
                w[i + 8] = first;
            }
        }
        sha.v[0] = PLUS(sha.v[0], a);
        sha.v[1] = PLUS(sha.v[1], b);
        sha.v[2] = PLUS(sha.v[2], c);
        sha.v[3] = PLUS(sha.v[3], d);
        sha.v[4] = PLUS(sha.v[4], e);
        sha.v[5] = PLUS(sha.v[5], f);
        sha.v[6] = PLUS(sha.v[6], g);
        sha.v[7] = PLUS(sha.v[7], h);
    }
    for (int lane = 0; lane < LANES; lane++) {
        for (int word = 0; word < 4; word++)
            ((uint32_t *)md5_chains[lane])[word] = md5.w[word][lane];
        for (int word = 0; word < 8; word++)
            ((uint64_t *)sha512_chains[lane])[word] = sha.w[word][lane];
    }
}

#undef STEP
#undef ADD_UP_MD5
#undef PLUS
#undef THREE
#undef TURN
#undef NEXT
#undef LATE_NEXT
#undef ROUND
#undef NAME
#undef LANES
#undef VM
#undef M
#undef VS
#undef S
#undef SET64
#undef ROWS
#undef SWAP
#undef HALVES
