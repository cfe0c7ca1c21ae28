/* What the emulated board offers: words to the one who runs it, and a count of instructions. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

void say(const char *text);
void say_number(uint32_t number);
void leave(void);

/* Instructions that work() takes, to 40 of them: a tick of the timer is 40 ns, and the emulator gives each 1 ns. */
uint32_t instructions(void (*work)(void));

#endif /* BOARD_H */
