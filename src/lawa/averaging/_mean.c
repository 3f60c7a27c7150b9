/* The inner loops of mean.py on a CPU: a mean, whose snapshots are read once while the accumulator stays in the first
   cache; one step of a running average, in one pass over its state; and the copy that a capture is.

   The bits are those of the torch operations in mean.py: one IEEE operation at a time, each rounded once. So this
   is compiled with -ffp-contract=off (no fused multiply-add) and without any -ffast-math. */

#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

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

enum {
    CHUNK = 1 << 14,  /* elements: 64 kB of sums, which stay in a core's own cache */
    AROUND = 1 << 20, /* elements from which on the result is written around the caches, into which it would not fit */
};

static inline float widened(uint16_t bits) { /* bf16 is the upper half of an fp32 */
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* to <- from * scale */
static inline void put(float *to, const float *from, float scale, int64_t n, int around) {
#if defined(__x86_64__)
    /* An ordinary store reads the line that it is about to overwrite; these do not. */
    if (around) {
        for (; n > 0 && ((uintptr_t)to & 15); n--) *to++ = *from++ * scale;
        for (; n >= 4; n -= 4, to += 4, from += 4)
            _mm_stream_ps(to, _mm_mul_ps(_mm_loadu_ps(from), _mm_set1_ps(scale)));
    }
#endif
    for (int64_t j = 0; j < n; j++) to[j] = from[j] * scale;
}

/* The j-th element of the (i + g)-th snapshot, and its product with its coefficient. */
#define WIDE(g) (((const float *)snapshots[i + (g)])[start + j])
#define NARROW(g) widened(((const uint16_t *)snapshots[i + (g)])[start + j])
#define WIDE_PRODUCT(g) (coefficients[i + (g)] * WIDE(g))
#define NARROW_PRODUCT(g) (coefficients[i + (g)] * NARROW(g))

/* Oldest first, as C's + does from left to right; five in one go, for the sums then are loaded and stored less. */
#define ADD_ALL(term)                                                                       \
    do {                                                                                    \
        int64_t i = 0;                                                                      \
        for (; i + 5 <= k; i += 5)                                                          \
            for (int64_t j = 0; j < m; j++)                                                 \
                sum[j] = sum[j] + term(0) + term(1) + term(2) + term(3) + term(4);          \
        for (; i < k; i++)                                                                  \
            for (int64_t j = 0; j < m; j++) sum[j] = sum[j] + term(0);                      \
    } while (0)

/* a <- 0;  a <- a + theta_i, or a <- a + c_i * theta_i;  a <- a * scale at the end, where 1 changes nothing.

   a             fp32 [n]
   snapshots     k pointers, oldest first, to fp32 [n], or to bf16 [n] where bf16 is not 0
   coefficients  fp32 [k], or NULL */
EXPORTED EVERY_WIDTH void lawa_mean(float *a, const void *const *snapshots, const float *coefficients, int64_t k,
                                    float scale, int64_t n, int bf16) {
    float sum[CHUNK];
    for (int64_t start = 0; start < n; start += CHUNK) {
        int64_t m = n - start < CHUNK ? n - start : CHUNK;
        memset(sum, 0, sizeof sum);
        if (coefficients && bf16)
            ADD_ALL(NARROW_PRODUCT);
        else if (coefficients)
            ADD_ALL(WIDE_PRODUCT);
        else if (bf16)
            ADD_ALL(NARROW);
        else
            ADD_ALL(WIDE);
        put(a + start, sum, scale, m, n >= AROUND);
    }
#if defined(__x86_64__)
    _mm_sfence(); /* the other thread sees what was written around the caches */
#endif
}

/* What a reading does to element j of a running average's state. */
#define ADDED(theta) e[j] = e[j] + (theta)
#define FOLLOWED(theta) e[j] = e[j] + share * ((theta) - e[j])
#define EVERY(step, theta) \
    for (int64_t j = 0; j < m; j++) step(theta)

/* e <- e + share * (theta - e), or e <- e + theta, on the elements [start, stop) of e.

   state           fp32, the elements e
   readings        count pointers, to fp32 [lengths[i]], or to bf16 [lengths[i]] where bf16 is not 0
   offsets         where in the state each reading belongs
   one_minus_beta  the share; NULL for the sum */
EXPORTED EVERY_WIDTH void lawa_running(float *state, const void *const *readings, const int64_t *offsets,
                                       const int64_t *lengths, int64_t count, const float *one_minus_beta,
                                       int64_t start, int64_t stop, int bf16) {
    const float share = one_minus_beta ? *one_minus_beta : 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t first = offsets[i] > start ? offsets[i] : start;
        int64_t end = offsets[i] + lengths[i] < stop ? offsets[i] + lengths[i] : stop;
        if (first >= end) continue;
        int64_t m = end - first;
        float *e = state + first;
        const float *wide = (const float *)readings[i] + (first - offsets[i]);
        const uint16_t *narrow = (const uint16_t *)readings[i] + (first - offsets[i]);
        if (one_minus_beta && bf16)
            EVERY(FOLLOWED, widened(narrow[j]));
        else if (one_minus_beta)
            EVERY(FOLLOWED, wide[j]);
        else if (bf16)
            EVERY(ADDED, widened(narrow[j]));
        else
            EVERY(ADDED, wide[j]);
    }
}

/* to + offsets[i] <- from[i], on the bytes [start, stop) of to. What is copied is not read soon: it goes around the
   caches, and no line is read that is about to be overwritten. */
EXPORTED void lawa_copy(char *to, const void *const *from, const int64_t *offsets, const int64_t *lengths, int64_t count,
                        int64_t start, int64_t stop) {
    for (int64_t i = 0; i < count; i++) {
        int64_t first = offsets[i] > start ? offsets[i] : start;
        int64_t end = offsets[i] + lengths[i] < stop ? offsets[i] + lengths[i] : stop;
        if (first >= end) continue;
        int64_t n = end - first;
        char *into = to + first;
        const char *at = (const char *)from[i] + (first - offsets[i]);
#if defined(__x86_64__)
        for (; n > 0 && ((uintptr_t)into & 15); n--) *into++ = *at++;
        for (; n >= 64; n -= 64, into += 64, at += 64) {
            __m128i a = _mm_loadu_si128((const __m128i *)at), b = _mm_loadu_si128((const __m128i *)(at + 16));
            __m128i c = _mm_loadu_si128((const __m128i *)(at + 32)), d = _mm_loadu_si128((const __m128i *)(at + 48));
            _mm_stream_si128((__m128i *)into, a), _mm_stream_si128((__m128i *)(into + 16), b);
            _mm_stream_si128((__m128i *)(into + 32), c), _mm_stream_si128((__m128i *)(into + 48), d);
        }
#endif
        memcpy(into, at, (size_t)n);
    }
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

/* An importable module, so that the build puts it where Python finds it; its functions are called through ctypes. */
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_mean", NULL, -1, NULL, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__mean(void) { return PyModule_Create(&module); }
