#include "board.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define TIMER_CONTROL REGISTER(0xE000E010u)
#define TIMER_RELOAD REGISTER(0xE000E014u)
#define TIMER_VALUE REGISTER(0xE000E018u)
#define COPROCESSORS REGISTER(0xE000ED88u)

#define TIMER_BITS 0xFFFFFFu
#define NANOSECONDS_PER_TICK 40u

enum { WRITE_TEXT = 0x04, EXIT = 0x18, EXIT_REGULAR = 0x20026, EXIT_FAULT = 0x20023 };

extern uint32_t data_start[], data_end[], data_load[], bss_start[], bss_end[], stack_top[];

int main(void);

static void ask_host(int32_t operation, const void *argument)
{
    register int32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

void say(const char *text)
{
    ask_host(WRITE_TEXT, text);
}

void say_number(uint32_t number)
{
    char text[] = " 00000000";
    for (int digit = 8; digit > 0; --digit, number >>= 4) {
        text[digit] = "0123456789abcdef"[number & 15u];
    }
    say(text);
}

void leave(void)
{
    ask_host(EXIT, (const void *)EXIT_REGULAR);
}

static void fault(void)
{
    say("fault\n");
    ask_host(EXIT, (const void *)EXIT_FAULT);
}

uint32_t instructions(void (*work)(void))
{
    TIMER_RELOAD = TIMER_BITS;
    TIMER_VALUE = 0;
    TIMER_CONTROL = 5; /* on, at the processor's clock of 25 MHz */
    const uint32_t before = TIMER_VALUE;
    work();
    const uint32_t after = TIMER_VALUE;
    return ((before - after) & TIMER_BITS) * NANOSECONDS_PER_TICK;
}

void start(void)
{
    COPROCESSORS |= 0xF00000u; /* the floating-point unit */
    __asm__ volatile("dsb\n\tisb");
    for (uint32_t *to = data_start, *from = data_load; to < data_end;) {
        *to++ = *from++;
    }
    for (uint32_t *to = bss_start; to < bss_end;) {
        *to++ = 0;
    }
    main();
    leave();
}

__attribute__((section(".vectors"), used)) static void (*const vectors[])(void) = {
    (void (*)(void))stack_top, start, fault, fault, fault, fault, fault,
};
