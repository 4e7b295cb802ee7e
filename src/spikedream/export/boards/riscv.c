/* Start-up of QEMU's 32-bit RISC-V board, with semihosting (RISC-V International, "RISC-V Semihosting"). */
#include "board.h"

extern uint32_t _data_start, _data_end, _data_load, _bss_start, _bss_end;
int main(void);

uint32_t call(uint32_t operation, const void *argument)
{
    register uint32_t a0 __asm__("a0") = operation;
    register const void *a1 __asm__("a1") = argument;
    __asm__ volatile(".balign 16\n .option push\n .option norvc\n slli x0, x0, 0x1f\n ebreak\n srai x0, x0, 7\n .option pop"
                     : "+r"(a0) : "r"(a1) : "memory");
    return a0;
}

uint32_t counted(void)
{
    uint32_t count;
    __asm__ volatile(".option push\n .option arch, +zicsr\n csrr %0, minstret\n .option pop" : "=r"(count));
    return count;
}

uint32_t counted_by(void)
{
    uint32_t turns = 50000, start = counted(); /* QEMU may count nanoseconds here, by its clock for instructions */
    __asm__ volatile("1: addi %0, %0, -1\n bnez %0, 1b" : "+r"(turns));
    return counted() - start;
}

__attribute__((used)) static void begin(void)
{
    uint32_t *from = &_data_load, *to = &_data_start, end[2] = {0x20026u, 0}; /* ADP_Stopped_ApplicationExit */
    while (to < &_data_end)
        *to++ = *from++;
    for (to = &_bss_start; to < &_bss_end;)
        *to++ = 0;
    end[1] = (uint32_t)main();
    call(0x20, end); /* SYS_EXIT_EXTENDED */
    for (;;) {
    }
}

__attribute__((section(".vectors"), naked, used)) void _start(void)
{
    __asm__ volatile("la sp, _stack_top\n j begin");
}
