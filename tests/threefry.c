/* The hash that JAX draws its random bits with (threefry-2x32 of 20 rounds: Salmon et al. 2011, "Parallel random numbers: as easy
   as 1, 2, 3"), as a call out of compiled programs. */
#include <stdint.h>

#include "xla/ffi/api/c_api.h"

static const int ROTATIONS[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};

static void hash(uint32_t k0, uint32_t k1, uint32_t *a, uint32_t *b) {
    const uint32_t key[3] = {k0, k1, k0 ^ k1 ^ 0x1BD11BDA};
    *a += key[0], *b += key[1];
    for (uint32_t group = 0; group < 5; group++) {
        for (int round = 0; round < 4; round++) {
            const int r = ROTATIONS[group % 2][round];
            *a += *b;
            *b = (*b << r | *b >> (32 - r)) ^ *a;
        }
        *a += key[(group + 1) % 3], *b += key[(group + 2) % 3] + group + 1;
    }
}

/* Takes two words of the key and two to hash, each of the results' shape or a single one. */
XLA_FFI_Error *threefry(XLA_FFI_CallFrame *call) {
    const XLA_FFI_Extension_Base *asked = call->extension_start;
    if (asked && asked->type == XLA_FFI_Extension_Metadata) {
        XLA_FFI_Api_Version *version = &((const XLA_FFI_Metadata_Extension *)asked)->metadata->api_version;
        version->major_version = XLA_FFI_API_MAJOR, version->minor_version = XLA_FFI_API_MINOR;
        return NULL;
    }
    XLA_FFI_Buffer **in = (XLA_FFI_Buffer **)call->args.args, **out = (XLA_FFI_Buffer **)call->rets.rets;
    int64_t size = 1, step[4];
    for (int64_t i = 0; i < out[0]->rank; i++) size *= out[0]->dims[i];
    for (int i = 0; i < 4; i++) step[i] = in[i]->rank > 0;
    const uint32_t *k0 = in[0]->data, *k1 = in[1]->data, *x0 = in[2]->data, *x1 = in[3]->data;
    uint32_t *a = out[0]->data, *b = out[1]->data;
    for (int64_t i = 0; i < size; i++) {
        a[i] = x0[i * step[2]], b[i] = x1[i * step[3]];
        hash(k0[i * step[0]], k1[i * step[1]], &a[i], &b[i]);
    }
    return NULL;
}
