/* Averages from files to files: what execute.py has a thread do, in one call without Python's lock.

   For each block of elements every input's bytes are read once, into a buffer that stays in a core's own cache. Each
   output's mean is made of the buffers of its window, oldest first, and written in its place.

   The bits are those of averaging/mean.py: one IEEE operation at a time, each rounded once. So this is compiled with
   -ffp-contract=off (no fused multiply-add) and without any -ffast-math. */

#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EVERY_WIDTH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_WIDTH
#endif

enum { FLOAT32, BFLOAT16, FLOAT16 };      /* of elements */
enum { TRUNCATED = -1, NO_MEMORY = -2 };  /* beside the system's error numbers */
enum { CHUNK = 1 << 12 };                 /* elements: 16 kB of sums stay in the first cache */

static const int64_t SIZE[] = {4, 2, 2};

static inline float from_bf16(uint16_t bits) { /* the upper half of an fp32 */
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

static inline uint16_t to_bf16(float value) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (uint16_t)rounded;
}

/* Element j of the g-th of the tensors theta. */
#define OF_FLOAT32(g) (((const float *)theta[g])[j])
#define OF_BFLOAT16(g) from_bf16(((const uint16_t *)theta[g])[j])
#define OF_FLOAT16(g) ((float)((const _Float16 *)theta[g])[j])
#define EVERY(step) for (int64_t j = 0; j < m; j++) step
#define ADD(of) EVERY(sum[j] = sum[j] + of(0))
#define ADD_PRODUCT(of) EVERY(sum[j] = sum[j] + c * of(0))
#define ADD_FIVE(of) EVERY(sum[j] = sum[j] + of(0) + of(1) + of(2) + of(3) + of(4)) /* from left to right */

EVERY_WIDTH static void add(float *sum, const void *const *theta, int type, int64_t m) {
    if (type == FLOAT32) ADD(OF_FLOAT32);
    else if (type == BFLOAT16) ADD(OF_BFLOAT16);
    else ADD(OF_FLOAT16);
}

EVERY_WIDTH static void add_product(float *sum, float c, const void *const *theta, int type, int64_t m) {
    if (type == FLOAT32) ADD_PRODUCT(OF_FLOAT32);
    else if (type == BFLOAT16) ADD_PRODUCT(OF_BFLOAT16);
    else ADD_PRODUCT(OF_FLOAT16);
}

/* Five in one go: the sums are loaded and stored less often. */
EVERY_WIDTH static void add_five(float *sum, const void *const *theta, int type, int64_t m) {
    if (type == FLOAT32) ADD_FIVE(OF_FLOAT32);
    else if (type == BFLOAT16) ADD_FIVE(OF_BFLOAT16);
    else ADD_FIVE(OF_FLOAT16);
}

#define FINISH(to, of, put) EVERY(to[j] = put((sum[j] + of(0) + of(1) + of(2) + of(3) + of(4)) * scale))
#define AS_IT_IS(value) (value)
#define TO_FLOAT16(value) ((_Float16)(value))

/* out <- (sum + five of out's own type) * scale, in one go; whether any of it is not finite. */
EVERY_WIDTH static int finish(void *out, const float *sum, const void *const *theta, float scale, int type, int64_t m) {
    int bad = 0;
    if (type == FLOAT32) {
        float *to = out;
        FINISH(to, OF_FLOAT32, AS_IT_IS);
        EVERY(bad |= !(to[j] - to[j] == 0));
    } else if (type == BFLOAT16) {
        uint16_t *to = out;
        FINISH(to, OF_BFLOAT16, to_bf16);
        EVERY(bad |= (to[j] & 0x7f80) == 0x7f80);
    } else {
        _Float16 *to = out;
        FINISH(to, OF_FLOAT16, TO_FLOAT16);
        EVERY(bad |= !((float)to[j] - (float)to[j] == 0));
    }
    return bad;
}

/* out <- sum * scale, rounded to its type; whether any of it is not finite. */
EVERY_WIDTH static int put(void *out, const float *sum, float scale, int type, int64_t m) {
    int bad = 0;
    if (type == FLOAT32) {
        float *to = out;
        for (int64_t j = 0; j < m; j++) {
            float value = sum[j] * scale;
            bad |= !(value - value == 0);
            to[j] = value;
        }
    } else if (type == BFLOAT16) {
        uint16_t *to = out;
        for (int64_t j = 0; j < m; j++) {
            to[j] = to_bf16(sum[j] * scale);
            bad |= (to[j] & 0x7f80) == 0x7f80;
        }
    } else {
        _Float16 *to = out;
        for (int64_t j = 0; j < m; j++) {
            to[j] = (_Float16)(sum[j] * scale);
            float value = (float)to[j];
            bad |= !(value - value == 0);
        }
    }
    return bad;
}

static int64_t read_all(int fd, char *to, int64_t n, int64_t at) {
    while (n > 0) {
        ssize_t done = pread(fd, to, (size_t)n, at);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return done < 0 ? errno : TRUNCATED;
        to += done, n -= done, at += done;
    }
    return 0;
}

static int64_t write_all(int fd, const char *from, int64_t n, int64_t at) {
    while (n > 0) {
        ssize_t done = pwrite(fd, from, (size_t)n, at);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return done < 0 ? errno : ENOSPC;
        from += done, n -= done, at += done;
    }
    return 0;
}

/* sum <- the sum of a window's elements from ... from + m of its blocks; the whole of mean.py but its last line. */
static void sum_up(float *sum, const char *memory, int64_t block, const int *types, const int64_t *window, int64_t k,
                   const float *coefficients, int64_t from, int64_t m) {
    memset(sum, 0, (size_t)m * sizeof *sum);
    for (int64_t i = 0; i < k;) {
        const void *theta[5];
        int type = types[window[i]];
        int64_t alike = 0;
        for (; alike < 5 && i + alike < k && types[window[i + alike]] == type; alike++)
            theta[alike] = memory + window[i + alike] * block * 4 + from * SIZE[type];
        if (coefficients) {
            add_product(sum, coefficients[i], theta, type, m);
            i++;
        } else if (alike == 5) {
            add_five(sum, theta, type, m);
            i += 5;
        } else {
            add(sum, theta, type, m);
            i++;
        }
    }
}

/* The last five of a window, from their element `from` on; whether it has them, all of `type`. */
static int last_five(const void **theta, const char *memory, int64_t block, const int *types, const int64_t *window,
                     int64_t k, int type, int64_t from) {
    if (k < 5) return 0;
    for (int64_t i = 0; i < 5; i++) {
        int64_t input = window[k - 5 + i];
        if (types[input] != type) return 0;
        theta[i] = memory + input * block * 4 + from * SIZE[type];
    }
    return 1;
}

/* n elements of one tensor.

   fds, offsets, types   of each input: where its first element lies
   out_fds, out_offsets  of each output; all are of out_type
   counts, windows       of each output: how many inputs it averages, and their indexes, oldest first
   coefficients          of each output: fp32 [count], or NULL for the uniform mean
   block                 elements that are read of each input before the next ones
   failed                set to the input, or inputs + the output, at which it ended
   not_finite            set to 1 for outputs with an inf or nan

   Returns 0, or what failed: the system's error number, TRUNCATED, NO_MEMORY. */
int64_t lawa_average_files(int64_t inputs, const int *fds, const int64_t *offsets, const int *types, int64_t outputs,
                           const int *out_fds, const int64_t *out_offsets, const int64_t *counts,
                           const int64_t *const *windows, const float *const *coefficients, int out_type, int64_t n,
                           int64_t block, int64_t *failed, uint8_t *not_finite) {
    float sum[CHUNK];
    char *memory;
    if (posix_memalign((void **)&memory, 4096, (size_t)(inputs + 1) * (size_t)block * 4)) return NO_MEMORY;
    char *out = memory + inputs * block * 4;
    int64_t error = 0;
    for (int64_t start = 0; start < n && !error; start += block) {
        int64_t m = n - start < block ? n - start : block;
        for (int64_t i = 0; i < inputs && !error; i++) {
            int64_t size = SIZE[types[i]];
            *failed = i;
            error = read_all(fds[i], memory + i * block * 4, m * size, offsets[i] + start * size);
        }
        for (int64_t o = 0; o < outputs && !error; o++) {
            int64_t size = SIZE[out_type];
            float scale = coefficients[o] ? 1 : (float)(1 / (double)counts[o]);
            for (int64_t from = 0; from < m; from += CHUNK) {
                int64_t length = m - from < CHUNK ? m - from : CHUNK;
                const void *theta[5];
                int fused = !coefficients[o] &&
                            last_five(theta, memory, block, types, windows[o], counts[o], out_type, from);
                sum_up(sum, memory, block, types, windows[o], counts[o] - 5 * fused, coefficients[o], from, length);
                int bad = fused ? finish(out + from * size, sum, theta, scale, out_type, length)
                                : put(out + from * size, sum, scale, out_type, length);
                not_finite[o] |= (uint8_t)bad;
            }
            *failed = inputs + o;
            error = write_all(out_fds[o], out, m * size, out_offsets[o] + start * size);
        }
    }
    free(memory);
    return error;
}

/* An importable module, so that the build puts it where Python finds it; its function is called through ctypes. */
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_files", NULL, -1, NULL, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__files(void) { return PyModule_Create(&module); }
