/* Acts on the cases compiled in, and prints the actions' bits: on this machine, for the sanitizers. */
#include "cases.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    for (int k = 0; k < CASES; ++k) {
        printf("action");
        act(k);
        for (int i = 0; i < POLICY_ACTION; ++i) {
            uint32_t word;
            memcpy(&word, &action[i], sizeof word);
            printf(" %08lx", (unsigned long)word);
        }
        printf("\n");
    }
    return 0;
}
