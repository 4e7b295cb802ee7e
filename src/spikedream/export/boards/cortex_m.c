/* Start-up of a Cortex-M under QEMU, with semihosting (Arm, "Semihosting for AArch32 and AArch64"). */
#include "board.h"

extern uint32_t _data_start, _data_end, _data_load, _bss_start, _bss_end, _stack_top;
int main(void);

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define CPACR REGISTER(0xE000ED88u)
#define SYST_CSR REGISTER(0xE000E010u)
#define SYST_RVR REGISTER(0xE000E014u)
#define SYST_CVR REGISTER(0xE000E018u)

uint32_t call(uint32_t operation, const void *argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

uint32_t counted(void)
{
    return ~SYST_CVR & COUNTER_MASK; /* it counts down */
}

uint32_t counted_by(void)
{
    uint32_t turns = 50000, start = counted();
    __asm__ volatile("1: subs %0, #1\n bne 1b" : "+l"(turns) : : "cc");
    return (counted() - start) & COUNTER_MASK;
}

static void reset(void)
{
    uint32_t *from = &_data_load, *to = &_data_start, end[2] = {0x20026u, 0}; /* ADP_Stopped_ApplicationExit */
    while (to < &_data_end)
        *to++ = *from++;
    for (to = &_bss_start; to < &_bss_end;)
        *to++ = 0;
#ifdef __ARM_FP
    CPACR |= 0xfu << 20;
    __asm__ volatile("dsb\n isb");
#endif
    SYST_RVR = COUNTER_MASK;
    SYST_CVR = 0;
    SYST_CSR = 5; /* the processor's own clock, no interrupt */
    end[1] = (uint32_t)main();
    call(0x20, end); /* SYS_EXIT_EXTENDED */
    for (;;) {
    }
}

__attribute__((section(".vectors"), used)) static void *const vectors[] = {&_stack_top, (void *)reset};
