/* The body of a sha256 or sha512 kernel (FIPS 180-4), for any width. Included once per kernel, with these defined:
 *
 *   NAME TARGET LANES      the function, its target attribute, how many streams
 *   BITS                   32: sha256, 64: sha512
 *   V                      a vector of LANES words of that size (or one word)
 *   ADD(x, y) SUB(x, y) ROR(x, n) SHR(x, n)     on every word
 *   SET(k)                 the same word everywhere
 *   XOR3 CH MAJ(x, y, z)   bit by bit
 *   LOAD(w, data, at)      V w[16]: the big-endian words of the block at that offset, one stream per element
 */
#if BITS == 64
#define WORD uint64_t
#define ROUNDS 80
#define BLOCK 128
#define K K_SHA512
#define SUM0(x) XOR3(ROR(x, 28), ROR(x, 34), ROR(x, 39))
#define SUM1(x) XOR3(ROR(x, 14), ROR(x, 18), ROR(x, 41))
#define SIGMA0(x) XOR3(ROR(x, 1), ROR(x, 8), SHR(x, 7))
#define SIGMA1(x) XOR3(ROR(x, 19), ROR(x, 61), SHR(x, 6))
#else
#define WORD uint32_t
#define ROUNDS 64
#define BLOCK 64
#define K K_SHA256
#define SUM0(x) XOR3(ROR(x, 2), ROR(x, 13), ROR(x, 22))
#define SUM1(x) XOR3(ROR(x, 6), ROR(x, 11), ROR(x, 25))
#define SIGMA0(x) XOR3(ROR(x, 7), ROR(x, 18), SHR(x, 3))
#define SIGMA1(x) XOR3(ROR(x, 17), ROR(x, 19), SHR(x, 10))
#endif

/* The chains are the newest e and the newest a, each three instructions behind the one before: d joins early, and what
 * needs the newest word comes last. That a takes its part of the sum back from e saves an addition. */
#define ROUND(a, b, c, d, e, f, g, h, i)                                                                           \
    do {                                                                                                           \
        const V old = d, early = ADD(d, ADD(h, ADD(w[i], SET(k[i]))));                                             \
        d = ADD(ADD(early, CH(e, f, g)), SUM1(e));                                                                 \
        h = ADD(ADD(SUB(d, old), MAJ(a, b, c)), SUM0(a));                                                          \
    } while (0);
/* The word of sixteen rounds later, as soon as this round has used its own: nothing waits for it then. */
#define NEXT(i)                                                                                                    \
    w[i] = ADD(ADD(ADD(w[i], w[(i + 9) & 15]), SIGMA0(w[(i + 1) & 15])), SIGMA1(w[(i + 14) & 15]));
#define NOTHING(i)
#define SIXTEEN(AFTER)                                                                                             \
    ROUND(a, b, c, d, e, f, g, h, 0) AFTER(0) ROUND(h, a, b, c, d, e, f, g, 1) AFTER(1)                            \
    ROUND(g, h, a, b, c, d, e, f, 2) AFTER(2) ROUND(f, g, h, a, b, c, d, e, 3) AFTER(3)                            \
    ROUND(e, f, g, h, a, b, c, d, 4) AFTER(4) ROUND(d, e, f, g, h, a, b, c, 5) AFTER(5)                            \
    ROUND(c, d, e, f, g, h, a, b, 6) AFTER(6) ROUND(b, c, d, e, f, g, h, a, 7) AFTER(7)                            \
    ROUND(a, b, c, d, e, f, g, h, 8) AFTER(8) ROUND(h, a, b, c, d, e, f, g, 9) AFTER(9)                            \
    ROUND(g, h, a, b, c, d, e, f, 10) AFTER(10) ROUND(f, g, h, a, b, c, d, e, 11) AFTER(11)                        \
    ROUND(e, f, g, h, a, b, c, d, 12) AFTER(12) ROUND(d, e, f, g, h, a, b, c, 13) AFTER(13)                        \
    ROUND(c, d, e, f, g, h, a, b, 14) AFTER(14) ROUND(b, c, d, e, f, g, h, a, 15) AFTER(15)

TARGET void NAME(void *const chains[], const uint8_t *const data[], size_t blocks)
{
    union {
        V v[8];
        WORD w[8][LANES];
    } chain;
    for (int word = 0; word < 8; word++)
        for (int lane = 0; lane < LANES; lane++)
            chain.w[word][lane] = ((const WORD *)chains[lane])[word];
    for (size_t at = 0; blocks > 0; blocks--, at += BLOCK) {
        V w[16];
        V a = chain.v[0], b = chain.v[1], c = chain.v[2], d = chain.v[3];
        V e = chain.v[4], f = chain.v[5], g = chain.v[6], h = chain.v[7];
        const WORD *k = K;
        LOAD(w, data, at);
        for (int round = 16; round < ROUNDS; round += 16, k += 16) {
            FROM_MEMORY(k);
            SIXTEEN(NEXT)
        }
        FROM_MEMORY(k);
        SIXTEEN(NOTHING)
        chain.v[0] = ADD(chain.v[0], a);
        chain.v[1] = ADD(chain.v[1], b);
        chain.v[2] = ADD(chain.v[2], c);
        chain.v[3] = ADD(chain.v[3], d);
        chain.v[4] = ADD(chain.v[4], e);
        chain.v[5] = ADD(chain.v[5], f);
        chain.v[6] = ADD(chain.v[6], g);
        chain.v[7] = ADD(chain.v[7], h);
    }
    for (int word = 0; word < 8; word++)
        for (int lane = 0; lane < LANES; lane++)
            ((WORD *)chains[lane])[word] = chain.w[word][lane];
}

#undef WORD
#undef ROUNDS
#undef BLOCK
#undef K
#undef SUM0
#undef SUM1
#undef SIGMA0
#undef SIGMA1
#undef ROUND
#undef NEXT
#undef NOTHING
#undef SIXTEEN
#undef NAME
#undef TARGET
#undef LANES
#undef BITS
#undef V
#undef ADD
#undef SUB
#undef ROR
#undef SHR
#undef SET
#undef XOR3
#undef CH
#undef MAJ
#undef LOAD
