/* What the one-lane kernels share: words of a block, and the operations on one word. */
#ifndef GLISSADE_SCALAR_H
#define GLISSADE_SCALAR_H

#include <stdint.h>
#include <string.h>

#define WORD_ROL(x, n) (((x) << (n)) | ((x) >> (32 - (n))))
#define WORD32_ROR(x, n) (((x) >> (n)) | ((x) << (32 - (n))))
#define WORD64_ROR(x, n) (((x) >> (n)) | ((x) << (64 - (n))))
#define WORD_ADD(x, y) ((x) + (y))
#define WORD_SUB(x, y) ((x) - (y))
#define WORD_SHR(x, n) ((x) >> (n))
#define WORD_SET(k) (k)
#define WORD_XOR3(x, y, z) ((x) ^ (y) ^ (z))
#define WORD_CH(x, y, z) ((((y) ^ (z)) & (x)) ^ (z))
#define WORD_MAJ(x, y, z) (((x) & (y)) | (((x) | (y)) & (z)))

/* md5: its bits exclude each other, so both halves of G can be added one by one, the late one last. */
#define WORD_ADD_F(t, x, y, z) ((t) + ((((y) ^ (z)) & (x)) ^ (z)))
#define WORD_ADD_G(t, x, y, z) (((t) + (~(z) & (y))) + ((z) & (x)))
#define WORD_ADD_H(t, x, y, z) ((t) + (((y) ^ (z)) ^ (x)))
#define WORD_ADD_I(t, x, y, z) ((t) + ((y) ^ ((x) | ~(z))))

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LITTLE32(x) __builtin_bswap32(x)
#define BIG32(x) (x)
#define BIG64(x) (x)
#else
#define LITTLE32(x) (x)
#define BIG32(x) __builtin_bswap32(x)
#define BIG64(x) __builtin_bswap64(x)
#endif

static inline uint32_t read32(const uint8_t *from)
{
    uint32_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

static inline uint64_t read64(const uint8_t *from)
{
    uint64_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

#define LOAD_WORDS(m, data, at, READ, ORDER, SIZE)                                                                 \
    for (int i = 0; i < 16; i++)                                                                                   \
        m[i] = ORDER(READ((data)[0] + (at) + (SIZE) * i))
#define LOAD_SHA256(m, data, at) LOAD_WORDS(m, data, at, read32, BIG32, 4)
#define LOAD_SHA512(m, data, at) LOAD_WORDS(m, data, at, read64, BIG64, 8)

#endif
