/* The body of an md5 kernel (RFC 1321), for any width. Included once per kernel, with these defined:
 *
 *   NAME TARGET LANES      the function, its target attribute, elements of a vector
 *   FILLED_LANES           how many of them are streams (LANES unless defined)
 *   V                      a vector of LANES 32-bit words (or one word)
 *   ADD(x, y) ROL(x, n)    on every word
 *   SET(k)                 the same word everywhere
 *   ADD_F ADD_G ADD_H ADD_I(t, x, y, z)   t plus the round's function; x is the word that is known last
 *   LOAD(m, data, at)      V m[16]: the words of the block at that offset, one stream per element
 *
 * The order of the additions is the speed: what needs the newest word comes last (hence -fno-tree-reassoc).
 */
#ifndef FILLED_LANES
#define FILLED_LANES LANES
#endif

#define STEP(ADD_FN, a, b, c, d, i, g, s)                                                                          \
    a = ADD(b, ROL(ADD_FN(ADD(a, ADD(m[g], SET(K_MD5[i]))), b, c, d), s));
#define FOUR(ADD_FN, i, g0, g1, g2, g3, s0, s1, s2, s3)                                                            \
    STEP(ADD_FN, a, b, c, d, i, g0, s0)                                                                            \
    STEP(ADD_FN, d, a, b, c, i + 1, g1, s1)                                                                        \
    STEP(ADD_FN, c, d, a, b, i + 2, g2, s2)                                                                        \
    STEP(ADD_FN, b, c, d, a, i + 3, g3, s3)

TARGET void NAME(void *const chains[], const uint8_t *const data[], size_t blocks)
{
    union {
        V v[4];
        uint32_t w[4][LANES];
    } chain;
    memset(&chain, 0, sizeof chain);
    for (int word = 0; word < 4; word++)
        for (int lane = 0; lane < FILLED_LANES; lane++)
            chain.w[word][lane] = ((const uint32_t *)chains[lane])[word];
    V a = chain.v[0], b = chain.v[1], c = chain.v[2], d = chain.v[3];
    for (size_t at = 0; blocks > 0; blocks--, at += 64) {
        V m[16];
        const V a0 = a, b0 = b, c0 = c, d0 = d;
        LOAD(m, data, at);
        FOUR(ADD_F, 0, 0, 1, 2, 3, 7, 12, 17, 22)
        FOUR(ADD_F, 4, 4, 5, 6, 7, 7, 12, 17, 22)
        FOUR(ADD_F, 8, 8, 9, 10, 11, 7, 12, 17, 22)
        FOUR(ADD_F, 12, 12, 13, 14, 15, 7, 12, 17, 22)
        FOUR(ADD_G, 16, 1, 6, 11, 0, 5, 9, 14, 20)
        FOUR(ADD_G, 20, 5, 10, 15, 4, 5, 9, 14, 20)
        FOUR(ADD_G, 24, 9, 14, 3, 8, 5, 9, 14, 20)
        FOUR(ADD_G, 28, 13, 2, 7, 12, 5, 9, 14, 20)
        FOUR(ADD_H, 32, 5, 8, 11, 14, 4, 11, 16, 23)
        FOUR(ADD_H, 36, 1, 4, 7, 10, 4, 11, 16, 23)
        FOUR(ADD_H, 40, 13, 0, 3, 6, 4, 11, 16, 23)
        FOUR(ADD_H, 44, 9, 12, 15, 2, 4, 11, 16, 23)
        FOUR(ADD_I, 48, 0, 7, 14, 5, 6, 10, 15, 21)
        FOUR(ADD_I, 52, 12, 3, 10, 1, 6, 10, 15, 21)
        FOUR(ADD_I, 56, 8, 15, 6, 13, 6, 10, 15, 21)
        FOUR(ADD_I, 60, 4, 11, 2, 9, 6, 10, 15, 21)
        a = ADD(a, a0);
        b = ADD(b, b0);
        c = ADD(c, c0);
        d = ADD(d, d0);
    }
    chain.v[0] = a;
    chain.v[1] = b;
    chain.v[2] = c;
    chain.v[3] = d;
    for (int word = 0; word < 4; word++)
        for (int lane = 0; lane < FILLED_LANES; lane++)
            ((uint32_t *)chains[lane])[word] = chain.w[word][lane];
}

#undef STEP
#undef FOUR
#undef NAME
#undef TARGET
#undef LANES
#undef FILLED_LANES
#undef V
#undef ADD
#undef ROL
#undef SET
#undef ADD_F
#undef ADD_G
#undef ADD_H
#undef ADD_I
#undef LOAD
