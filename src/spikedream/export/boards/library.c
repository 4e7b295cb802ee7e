/* Output, and what a compiler may call for copies and zeros where there is no C library. */
#include "board.h"
#include <stddef.h>

void print(const char *text)
{
    static uintptr_t console[3] = {(uintptr_t) ":tt", 4, 3}, handle; /* written to, three letters */
    uintptr_t block[3] = {0, (uintptr_t)text, 0};
    if (!handle)
        handle = call(0x01, console); /* SYS_OPEN */
    block[0] = handle;
    while (text[block[2]])
        block[2]++;
    call(0x05, block); /* SYS_WRITE */
}

__attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memcpy(void *to, const void *from, size_t size)
{
    char *t = to;
    const char *f = from;
    while (size--)
        *t++ = *f++;
    return to;
}

__attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memset(void *to, int value, size_t size)
{
    char *t = to;
    while (size--)
        *t++ = (char)value;
    return to;
}
