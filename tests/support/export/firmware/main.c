/* Acts on the cases compiled in, and tells the actions, the instructions that one takes and the stack that it needs. */
#include "board.h"
#include "cases.h"

#include <stdint.h>
#include <string.h>

#define PAINT 0x5AFEu
#define PAINTED 1024

static void act_on_all(void)
{
    for (int k = 0; k < CASES; ++k) {
        act(k);
    }
}

/* 131,072 instructions, and a few more, to see that they are counted right. */
static void count_down(void)
{
    __asm__ volatile("movs r3, #0\n\t"
                     "movt r3, #1\n\t"
                     "1: subs r3, r3, #1\n\t"
                     "bne 1b"
                     :
                     :
                     : "r3", "cc");
}

/* Bytes of stack below this function that an action writes to. */
__attribute__((noinline)) static uint32_t stack_bytes(void)
{
    uint32_t *top;
    __asm__ volatile("mov %0, sp" : "=r"(top));
    for (int depth = 1; depth <= PAINTED; ++depth) {
        ((volatile uint32_t *)top)[-depth] = PAINT;
    }
    act(CASES - 1);
    int untouched = PAINTED;
    while (untouched > 0 && ((volatile uint32_t *)top)[-untouched] == PAINT) {
        --untouched;
    }
    return 4u * (uint32_t)untouched;
}

int main(void)
{
    for (int k = 0; k < CASES; ++k) {
        say("action");
        act(k);
        for (int i = 0; i < POLICY_ACTION; ++i) {
            uint32_t word;
            memcpy(&word, &action[i], sizeof word);
            say_number(word);
        }
        say("\n");
    }
    say("counted");
    say_number(instructions(count_down));
    say("\ninstructions");
    say_number(instructions(act_on_all) / CASES);
    say("\nstack");
    say_number(stack_bytes());
    say("\n");
    return 0;
}
