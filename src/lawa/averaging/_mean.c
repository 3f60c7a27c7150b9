/* The inner loop of mean.py on a CPU: every snapshot is read once, and the accumulator stays in the first cache.

   The bits are those of the torch operations in mean.py: one IEEE operation at a time, each rounded once. So this
   is compiled with -ffp-contract=off (no fused multiply-add) and without any -ffast-math. */

#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EVERY_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_WIDTH
#endif

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

enum { CHUNK = 4096 }; /* elements: 16 kB of accumulator */

static inline float widened(uint16_t bits) { /* bf16 is the upper half of an fp32 */
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* a <- 0;  a <- a + theta_i, or a <- a + c_i * theta_i;  without coefficients, a <- a * scale at the end.

   a             fp32 [n]
   snapshots     k pointers, oldest first, to fp32 [n], or to bf16 [n] where bf16 is not 0
   coefficients  fp32 [k], or NULL */
EXPORTED EVERY_WIDTH void lawa_mean(float *restrict a, const void *const *snapshots, const float *coefficients,
                                    int64_t k, float scale, int64_t n, int bf16) {
    for (int64_t start = 0; start < n; start += CHUNK) {
        int64_t m = n - start < CHUNK ? n - start : CHUNK;
        float *restrict sum = a + start;
        memset(sum, 0, (size_t)m * sizeof *sum);
        for (int64_t i = 0; i < k; i++) {
            const float *theta = (const float *)snapshots[i] + start;
            const uint16_t *narrow = (const uint16_t *)snapshots[i] + start;
            if (coefficients && bf16)
                for (int64_t j = 0; j < m; j++) sum[j] += coefficients[i] * widened(narrow[j]);
            else if (coefficients)
                for (int64_t j = 0; j < m; j++) sum[j] += coefficients[i] * theta[j];
            else if (bf16)
                for (int64_t j = 0; j < m; j++) sum[j] += widened(narrow[j]);
            else
                for (int64_t j = 0; j < m; j++) sum[j] += theta[j];
        }
        if (!coefficients)
            for (int64_t j = 0; j < m; j++) sum[j] *= scale;
    }
}

/* An importable module, so that the build puts it where Python finds it; its function is called through ctypes. */
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_mean", NULL, -1, NULL, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__mean(void) { return PyModule_Create(&module); }
