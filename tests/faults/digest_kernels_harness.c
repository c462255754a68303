/* Feeds random streams to every kernel, each stream's bytes in a block of exactly their size, and prints what came out:
 * "algorithm start length digest". Byte i of a stream is start + i * i * 7 + i / 8 (modulo 256). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "_states.h"

static unsigned long long seed = 88172645463325252ull;

static size_t any(size_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (size_t)(seed % below);
}

/* Random rounds: every stream gets the same number of new bytes, some go on alone in between. */
static void streams(const struct plan *plan, enum algorithm algorithm, size_t count)
{
    struct hash_state states[MOST_STREAMS];
    size_t start[MOST_STREAMS];
    for (size_t i = 0; i < count; i++) {
        state_init(&states[i], algorithm);
        start[i] = any(256);
    }
    for (size_t round = 0; round < 6; round++) {
        struct hash_state *chosen[MOST_STREAMS];
        uint8_t *data[MOST_STREAMS];
        size_t used = 0;
        const size_t size = any(4) == 0 ? any(20) : any(600);
        for (size_t i = 0; i < count; i++) {
            if (any(8) == 0)
                continue;
            data[used] = malloc(size > 0 ? size : 1);
            if (data[used] == NULL)
                exit(2);
            for (size_t at = 0; at < size; at++) {
                const size_t place = (size_t)states[i].length + at;
                data[used][at] = (uint8_t)(start[i] + place * place * 7 + place / 8);
            }
            chosen[used++] = &states[i];
        }
        states_update(plan, chosen, (const uint8_t *const *)data, used, size);
        for (size_t i = 0; i < used; i++)
            free(data[i]);
    }
    for (size_t i = 0; i < count; i++) {
        uint8_t digest[64];
        state_digest(plan, &states[i], digest);
        printf("%s %zu %llu ", FACTS[algorithm].name, start[i], (unsigned long long)states[i].length);
        for (size_t at = 0; at < FACTS[algorithm].digest_bytes; at++)
            printf("%02x", digest[at]);
        printf("\n");
    }
}

/* md5 and sha512 of the same bytes, together where there is a kernel for it. */
static void both(const struct plan *md5_plan, const struct plan *sha512_plan, size_t count)
{
    struct hash_state states[2][MOST_STREAMS];
    struct hash_state *pointers[2][MOST_STREAMS];
    size_t start[MOST_STREAMS], length = 0;
    for (size_t i = 0; i < count; i++) {
        start[i] = any(256);
        for (int k = 0; k < 2; k++) {
            state_init(&states[k][i], k == 0 ? ALGORITHM_MD5 : ALGORITHM_SHA512);
            pointers[k][i] = &states[k][i];
        }
    }
    for (size_t round = 0; round < 6; round++) {
        uint8_t *data[MOST_STREAMS];
        const size_t size = round == 4 ? any(300) : 64 * any(12);
        for (size_t i = 0; i < count; i++) {
            data[i] = malloc(size > 0 ? size : 1);
            if (data[i] == NULL)
                exit(2);
            for (size_t at = 0; at < size; at++) {
                const size_t place = length + at;
                data[i][at] = (uint8_t)(start[i] + place * place * 7 + place / 8);
            }
        }
        states_update_both(md5_plan, sha512_plan, pointers[0], pointers[1], (const uint8_t *const *)data, count, size);
        length += size;
        for (size_t i = 0; i < count; i++)
            free(data[i]);
    }
    for (size_t i = 0; i < count; i++)
        for (int k = 0; k < 2; k++) {
            uint8_t digest[64];
            const struct algorithm_facts *facts = &FACTS[states[k][i].algorithm];
            state_digest(k == 0 ? md5_plan : sha512_plan, &states[k][i], digest);
            printf("%s %zu %zu ", facts->name, start[i], length);
            for (size_t at = 0; at < facts->digest_bytes; at++)
                printf("%02x", digest[at]);
            printf("\n");
        }
}

int main(void)
{
    const struct plan md5_plan = {1, {{&KERNELS[0], 1}}};
    for (size_t number = 0; number < KERNEL_COUNT; number++) {
        const struct kernel *kernel = &KERNELS[number];
        if (!kernel->is_supported())
            continue;
        const struct plan plan = {1, {{kernel, 1}}};
        for (int algorithm = 0; algorithm < ALGORITHMS; algorithm++)
            if (FACTS[algorithm].family == kernel->family)
                for (size_t count = 1; count <= kernel->lanes + 3; count += 1 + any(3))
                    streams(&plan, (enum algorithm)algorithm, count);
    }
    for (size_t number = 0; number < KERNEL_COUNT; number++)
        if (KERNELS[number].family == SHA512 && KERNELS[number].lanes == 1 && KERNELS[number].level == PLAIN) {
            const struct plan sha512_plan = {1, {{&KERNELS[number], 1}}};
            for (size_t count = 1; count <= 20; count++)
                both(&md5_plan, &sha512_plan, count);
        }
    /* All kernels of a family together, as they are used. */
    for (int algorithm = 0; algorithm < ALGORITHMS; algorithm++) {
        struct plan plan = {0};
        for (size_t number = 0; number < KERNEL_COUNT && plan.count < 8; number++)
            if (KERNELS[number].is_supported() && KERNELS[number].family == FACTS[algorithm].family) {
                plan.choices[plan.count].kernel = &KERNELS[number];
                plan.choices[plan.count++].cost = 1 + 0.1 * KERNELS[number].lanes;
            }
        for (size_t count = 0; count <= MOST_STREAMS; count += 7)
            streams(&plan, (enum algorithm)algorithm, count);
    }
    return 0;
}
