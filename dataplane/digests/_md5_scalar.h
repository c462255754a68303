/* The body of an md5 kernel (RFC 1321) in general registers. One stream waits for its own results and leaves most of the
 * CPU's ports idle: two take no longer than one, three little. Included once per kernel, with these defined:
 *
 *   NAME TARGET    the function and its target attribute
 *   STREAMS        1 to 4
 */
#if STREAMS == 1
#define EACH(M, ...) M(0, __VA_ARGS__)
#elif STREAMS == 2
#define EACH(M, ...) M(0, __VA_ARGS__) M(1, __VA_ARGS__)
#elif STREAMS == 3
#define EACH(M, ...) M(0, __VA_ARGS__) M(1, __VA_ARGS__) M(2, __VA_ARGS__)
#else
#define EACH(M, ...) M(0, __VA_ARGS__) M(1, __VA_ARGS__) M(2, __VA_ARGS__) M(3, __VA_ARGS__)
#endif

#define STEP_OF(n, ADD_FN, a, b, c, d, i, g, s)                                                                    \
    t = a##n + (LITTLE32(read32(m##n + 4 * (g))) + K_MD5[i]);                                                      \
    t = ADD_FN(t, b##n, c##n, d##n);                                                                               \
    a##n = b##n + WORD_ROL(t, s);
#define STEP(...) EACH(STEP_OF, __VA_ARGS__)
#define FOUR(ADD_FN, i, g0, g1, g2, g3, s0, s1, s2, s3)                                                            \
    STEP(ADD_FN, a, b, c, d, i, g0, s0)                                                                            \
    STEP(ADD_FN, d, a, b, c, i + 1, g1, s1)                                                                        \
    STEP(ADD_FN, c, d, a, b, i + 2, g2, s2)                                                                        \
    STEP(ADD_FN, b, c, d, a, i + 3, g3, s3)
#define BEGIN(n, _)                                                                                                \
    uint32_t *chain##n = chains[n];                                                                                \
    uint32_t a##n = chain##n[0], b##n = chain##n[1], c##n = chain##n[2], d##n = chain##n[3];
#if STREAMS <= 2
#define BLOCK_OF(n, _) const uint8_t *m##n = data[n] + at;
#else
/* On the stack: there are no registers left for pointers. */
#define BLOCK_OF(n, _)                                                                                             \
    uint8_t m##n[64];                                                                                              \
    memcpy(m##n, data[n] + at, 64);
#endif
#define ADD_UP(n, _)                                                                                               \
    a##n = chain##n[0] += a##n;                                                                                    \
    b##n = chain##n[1] += b##n;                                                                                    \
    c##n = chain##n[2] += c##n;                                                                                    \
    d##n = chain##n[3] += d##n;

TARGET void NAME(void *const chains[], const uint8_t *const data[], size_t blocks)
{
    EACH(BEGIN, )
    for (size_t at = 0; blocks > 0; blocks--, at += 64) {
        uint32_t t;
        EACH(BLOCK_OF, )
        FOUR(WORD_ADD_F, 0, 0, 1, 2, 3, 7, 12, 17, 22)
        FOUR(WORD_ADD_F, 4, 4, 5, 6, 7, 7, 12, 17, 22)
        FOUR(WORD_ADD_F, 8, 8, 9, 10, 11, 7, 12, 17, 22)
        FOUR(WORD_ADD_F, 12, 12, 13, 14, 15, 7, 12, 17, 22)
        FOUR(WORD_ADD_G, 16, 1, 6, 11, 0, 5, 9, 14, 20)
        FOUR(WORD_ADD_G, 20, 5, 10, 15, 4, 5, 9, 14, 20)
        FOUR(WORD_ADD_G, 24, 9, 14, 3, 8, 5, 9, 14, 20)
        FOUR(WORD_ADD_G, 28, 13, 2, 7, 12, 5, 9, 14, 20)
        FOUR(WORD_ADD_H, 32, 5, 8, 11, 14, 4, 11, 16, 23)
        FOUR(WORD_ADD_H, 36, 1, 4, 7, 10, 4, 11, 16, 23)
        FOUR(WORD_ADD_H, 40, 13, 0, 3, 6, 4, 11, 16, 23)
        FOUR(WORD_ADD_H, 44, 9, 12, 15, 2, 4, 11, 16, 23)
        FOUR(WORD_ADD_I, 48, 0, 7, 14, 5, 6, 10, 15, 21)
        FOUR(WORD_ADD_I, 52, 12, 3, 10, 1, 6, 10, 15, 21)
        FOUR(WORD_ADD_I, 56, 8, 15, 6, 13, 6, 10, 15, 21)
        FOUR(WORD_ADD_I, 60, 4, 11, 2, 9, 6, 10, 15, 21)
        EACH(ADD_UP, )
    }
}

#undef EACH
#undef STEP_OF
#undef STEP
#undef FOUR
#undef BEGIN
#undef BLOCK_OF
#undef ADD_UP
#undef NAME
#undef TARGET
#undef STREAMS
