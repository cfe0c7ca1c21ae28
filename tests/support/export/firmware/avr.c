/* Acts on the cases compiled in, on an AVR: sends the actions' bits by its serial port, and then sleeps for ever. */
#include "cases.h"

#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <stdint.h>
#include <string.h>

static void send(char letter)
{
    while (!(UCSR0A & (1 << UDRE0))) {
    }
    UDR0 = (uint8_t)letter;
}

static void send_text(const char *text)
{
    while (*text) {
        send(*text++);
    }
}

int main(void)
{
    UCSR0B = 1 << TXEN0;
    for (int k = 0; k < CASES; ++k) {
        act(k);
        send_text("action");
        for (int i = 0; i < POLICY_ACTION; ++i) {
            uint32_t word;
            memcpy(&word, &action[i], sizeof word);
            send(' ');
            for (int shift = 28; shift >= 0; shift -= 4) {
                send("0123456789abcdef"[(word >> shift) & 15u]);
            }
        }
        send('\n');
    }
    cli();
    sleep_mode();
    return 0;
}
