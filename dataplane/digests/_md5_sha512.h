/* A kernel for md5 and sha512 of the same bytes of several streams: two blocks of md5 beside one of sha512. md5 waits for
 * its own results nearly all the time, sha512 fills the ports: side by side they take two thirds of the time of one after the
 * other. Included once per width, with these defined:
 *
 *   NAME LANES             the function and its streams
 *   VM M(op)               a vector of LANES 32-bit words, and the intrinsics on it by the end of their names
 *   VS S(op) SET64         the same of 64-bit words; SET64(k) is one word everywhere
 *   MD5_ROWS SHA512_ROWS   load a block of 64 or 128 bytes of every stream, one stream per element
 *
 * The lines are the two algorithms in their order, dealt like cards. Written out in full it would be 33 KiB of code, more
 * than the instruction cache holds, and three times as slow whenever something else runs on the core.
 */
#define STEP(FUNCTION, a, b, c, d, g, i, s)                                                                        \
    a = M(add_epi32)(a, M(add_epi32)(block[g], M(set1_epi32)((int)K_MD5[i])));                                     \
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
#define NEXT(i)                                                                                                    \
    w[i] = PLUS(PLUS(w[i], w[(i + 9) & 15]), THREE(TURN(w[(i + 1) & 15], 1), TURN(w[(i + 1) & 15], 8),             \
                                                   S(srli_epi64)(w[(i + 1) & 15], 7)));                            \
    w[i] = PLUS(w[i], THREE(TURN(w[(i + 14) & 15], 19), TURN(w[(i + 14) & 15], 61),                                \
                            S(srli_epi64)(w[(i + 14) & 15], 6)));
#define ROUND(a, b, c, d, e, f, g, h, i, n)                                                                        \
    do {                                                                                                           \
        const VS early = PLUS(h, PLUS(w[i], SET64((long long)k[n])));                                              \
        const VS choice = S(ternarylogic_epi64)(e, f, g, CHOOSE);                                                  \
        const VS sum = THREE(TURN(e, 14), TURN(e, 18), TURN(e, 41));                                               \
        d = PLUS(PLUS(PLUS(d, early), choice), sum);                                                               \
        h = PLUS(PLUS(PLUS(early, choice), S(ternarylogic_epi64)(a, b, c, MAJORITY)), sum);                        \
        h = PLUS(h, THREE(TURN(a, 28), TURN(a, 34), TURN(a, 39)));                                                 \
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
        VM m[32];
        VS w[16];
        MD5_ROWS(m, data, at);
        MD5_ROWS(m + 16, data, at + 64);
        SHA512_ROWS(w, data, at);
        VS a = sha.v[0], b = sha.v[1], c = sha.v[2], d = sha.v[3];
        VS e = sha.v[4], f = sha.v[5], g = sha.v[6], h = sha.v[7];
        const uint64_t *k = K_SHA512;
        ROUND(a, b, c, d, e, f, g, h, 0, 0)
        ROUND(h, a, b, c, d, e, f, g, 1, 1)
        ROUND(g, h, a, b, c, d, e, f, 2, 2)
        ROUND(f, g, h, a, b, c, d, e, 3, 3)
        ROUND(e, f, g, h, a, b, c, d, 4, 4)
        ROUND(d, e, f, g, h, a, b, c, 5, 5)
        ROUND(c, d, e, f, g, h, a, b, 6, 6)
        ROUND(b, c, d, e, f, g, h, a, 7, 7)
        ROUND(a, b, c, d, e, f, g, h, 8, 8)
        ROUND(h, a, b, c, d, e, f, g, 9, 9)
        ROUND(g, h, a, b, c, d, e, f, 10, 10)
        ROUND(f, g, h, a, b, c, d, e, 11, 11)
        ROUND(e, f, g, h, a, b, c, d, 12, 12)
        ROUND(d, e, f, g, h, a, b, c, 13, 13)
        ROUND(c, d, e, f, g, h, a, b, 14, 14)
        ROUND(b, c, d, e, f, g, h, a, 15, 15)
        for (int half = 0; half < 2; half++) {
            const VM *block = m + 16 * half;
            k += 16;
            NEXT(0) ROUND(a, b, c, d, e, f, g, h, 0, 0)
            STEP(CHOOSE, A, B, C, D, 0, 0, 7) STEP(CHOOSE, D, A, B, C, 1, 1, 12)
            NEXT(1) ROUND(h, a, b, c, d, e, f, g, 1, 1)
            STEP(CHOOSE, C, D, A, B, 2, 2, 17) STEP(CHOOSE, B, C, D, A, 3, 3, 22)
            NEXT(2) ROUND(g, h, a, b, c, d, e, f, 2, 2)
            STEP(CHOOSE, A, B, C, D, 4, 4, 7) STEP(CHOOSE, D, A, B, C, 5, 5, 12)
            NEXT(3) ROUND(f, g, h, a, b, c, d, e, 3, 3)
            STEP(CHOOSE, C, D, A, B, 6, 6, 17) STEP(CHOOSE, B, C, D, A, 7, 7, 22)
            NEXT(4) ROUND(e, f, g, h, a, b, c, d, 4, 4)
            STEP(CHOOSE, A, B, C, D, 8, 8, 7) STEP(CHOOSE, D, A, B, C, 9, 9, 12)
            NEXT(5) ROUND(d, e, f, g, h, a, b, c, 5, 5)
            STEP(CHOOSE, C, D, A, B, 10, 10, 17) STEP(CHOOSE, B, C, D, A, 11, 11, 22)
            NEXT(6) ROUND(c, d, e, f, g, h, a, b, 6, 6)
            STEP(CHOOSE, A, B, C, D, 12, 12, 7) STEP(CHOOSE, D, A, B, C, 13, 13, 12)
            NEXT(7) ROUND(b, c, d, e, f, g, h, a, 7, 7)
            STEP(CHOOSE, C, D, A, B, 14, 14, 17) STEP(CHOOSE, B, C, D, A, 15, 15, 22)
            NEXT(8) ROUND(a, b, c, d, e, f, g, h, 8, 8)
            STEP(MD5_G, A, B, C, D, 1, 16, 5) STEP(MD5_G, D, A, B, C, 6, 17, 9)
            NEXT(9) ROUND(h, a, b, c, d, e, f, g, 9, 9)
            STEP(MD5_G, C, D, A, B, 11, 18, 14) STEP(MD5_G, B, C, D, A, 0, 19, 20)
            NEXT(10) ROUND(g, h, a, b, c, d, e, f, 10, 10)
            STEP(MD5_G, A, B, C, D, 5, 20, 5) STEP(MD5_G, D, A, B, C, 10, 21, 9)
            NEXT(11) ROUND(f, g, h, a, b, c, d, e, 11, 11)
            STEP(MD5_G, C, D, A, B, 15, 22, 14) STEP(MD5_G, B, C, D, A, 4, 23, 20)
            NEXT(12) ROUND(e, f, g, h, a, b, c, d, 12, 12)
            STEP(MD5_G, A, B, C, D, 9, 24, 5) STEP(MD5_G, D, A, B, C, 14, 25, 9)
            NEXT(13) ROUND(d, e, f, g, h, a, b, c, 13, 13)
            STEP(MD5_G, C, D, A, B, 3, 26, 14) STEP(MD5_G, B, C, D, A, 8, 27, 20)
            NEXT(14) ROUND(c, d, e, f, g, h, a, b, 14, 14)
            STEP(MD5_G, A, B, C, D, 13, 28, 5) STEP(MD5_G, D, A, B, C, 2, 29, 9)
            NEXT(15) ROUND(b, c, d, e, f, g, h, a, 15, 15)
            STEP(MD5_G, C, D, A, B, 7, 30, 14) STEP(MD5_G, B, C, D, A, 12, 31, 20)
            k += 16;
            NEXT(0) ROUND(a, b, c, d, e, f, g, h, 0, 0)
            STEP(XOR_3, A, B, C, D, 5, 32, 4) STEP(XOR_3, D, A, B, C, 8, 33, 11)
            NEXT(1) ROUND(h, a, b, c, d, e, f, g, 1, 1)
            STEP(XOR_3, C, D, A, B, 11, 34, 16) STEP(XOR_3, B, C, D, A, 14, 35, 23)
            NEXT(2) ROUND(g, h, a, b, c, d, e, f, 2, 2)
            STEP(XOR_3, A, B, C, D, 1, 36, 4) STEP(XOR_3, D, A, B, C, 4, 37, 11)
            NEXT(3) ROUND(f, g, h, a, b, c, d, e, 3, 3)
            STEP(XOR_3, C, D, A, B, 7, 38, 16) STEP(XOR_3, B, C, D, A, 10, 39, 23)
            NEXT(4) ROUND(e, f, g, h, a, b, c, d, 4, 4)
            STEP(XOR_3, A, B, C, D, 13, 40, 4) STEP(XOR_3, D, A, B, C, 0, 41, 11)
            NEXT(5) ROUND(d, e, f, g, h, a, b, c, 5, 5)
            STEP(XOR_3, C, D, A, B, 3, 42, 16) STEP(XOR_3, B, C, D, A, 6, 43, 23)
            NEXT(6) ROUND(c, d, e, f, g, h, a, b, 6, 6)
            STEP(XOR_3, A, B, C, D, 9, 44, 4) STEP(XOR_3, D, A, B, C, 12, 45, 11)
            NEXT(7) ROUND(b, c, d, e, f, g, h, a, 7, 7)
            STEP(XOR_3, C, D, A, B, 15, 46, 16) STEP(XOR_3, B, C, D, A, 2, 47, 23)
            NEXT(8) ROUND(a, b, c, d, e, f, g, h, 8, 8)
            STEP(MD5_I, A, B, C, D, 0, 48, 6) STEP(MD5_I, D, A, B, C, 7, 49, 10)
            NEXT(9) ROUND(h, a, b, c, d, e, f, g, 9, 9)
            STEP(MD5_I, C, D, A, B, 14, 50, 15) STEP(MD5_I, B, C, D, A, 5, 51, 21)
            NEXT(10) ROUND(g, h, a, b, c, d, e, f, 10, 10)
            STEP(MD5_I, A, B, C, D, 12, 52, 6) STEP(MD5_I, D, A, B, C, 3, 53, 10)
            NEXT(11) ROUND(f, g, h, a, b, c, d, e, 11, 11)
            STEP(MD5_I, C, D, A, B, 10, 54, 15) STEP(MD5_I, B, C, D, A, 1, 55, 21)
            NEXT(12) ROUND(e, f, g, h, a, b, c, d, 12, 12)
            STEP(MD5_I, A, B, C, D, 8, 56, 6) STEP(MD5_I, D, A, B, C, 15, 57, 10)
            NEXT(13) ROUND(d, e, f, g, h, a, b, c, 13, 13)
            STEP(MD5_I, C, D, A, B, 6, 58, 15) STEP(MD5_I, B, C, D, A, 13, 59, 21)
            NEXT(14) ROUND(c, d, e, f, g, h, a, b, 14, 14)
            STEP(MD5_I, A, B, C, D, 4, 60, 6) STEP(MD5_I, D, A, B, C, 11, 61, 10)
            NEXT(15) ROUND(b, c, d, e, f, g, h, a, 15, 15)
            STEP(MD5_I, C, D, A, B, 2, 62, 15) STEP(MD5_I, B, C, D, A, 9, 63, 21)
            ADD_UP_MD5
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
#undef ROUND
#undef NAME
#undef LANES
#undef VM
#undef M
#undef VS
#undef S
#undef SET64
#undef MD5_ROWS
#undef SHA512_ROWS
