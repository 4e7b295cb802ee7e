/* What the start-up files of all boards offer. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

uint32_t call(uint32_t operation, const void *argument); /* of the emulator: semihosting */
void print(const char *text);                               /* to its standard output */
uint32_t counted(void);       /* instructions, in units that `counted_by` tells, up to `COUNTER_MASK` */
uint32_t counted_by(void);    /* units in which 100,000 instructions are counted */

#ifdef __arm__
#define COUNTER_MASK 0xffffffu
#else
#define COUNTER_MASK 0xffffffffu
#endif

#endif
