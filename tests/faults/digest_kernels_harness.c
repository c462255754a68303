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

int main(void)
{
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
