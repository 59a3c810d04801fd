// MXFP4 decode and RMSNorm in C, tried on the conformance vectors. C99, no library but libm.
//
//   cc -O2 -o check examples/vectors_c/check.c -lm
//   gptoss-ref vectors VECTORS
//   mkdir RESULTS && ./check VECTORS RESULTS
//   gptoss-ref vectors --check RESULTS
//
// Computes every case of the two operations and writes the outputs into the folder RESULTS, for
// `gptoss-ref vectors --check` to judge. Prints how many cases of each are right by its own count:
// within the manifest's tolerance of an expected or otherwise accepted answer.

#include <math.h>
#include <stdint.h>

#include "files.h"

static const float E2M1[16] = {0,   0.5,  1,  1.5,  2,  3,  4,  6,
                               -0., -0.5, -1, -1.5, -2, -3, -4, -6};

// blocks (N, M/32, 16) and scales (N, M/32), bytes -> values (N, M).
static void mxfp4_decode(const uint8_t *blocks, const uint8_t *scales, long groups, float *values) {
  for (long g = 0; g < groups; g++) {
    int exponent = scales[g] - 127;  // byte 0 is a subnormal, not zero
    for (int j = 0; j < 16; j++) {
      uint8_t pair = blocks[16 * g + j];
      float low = E2M1[pair & 15], high = E2M1[pair >> 4];  // the low nibble comes first
      values[32 * g + 2 * j] = scales[g] == 255 ? NAN : ldexpf(low, exponent);
      values[32 * g + 2 * j + 1] = scales[g] == 255 ? NAN : ldexpf(high, exponent);
    }
  }
}

// x (T, D), scale (D,) -> y (T, D) = x / sqrt(mean(x²) + eps) · scale.
static void rmsnorm(const float *x, const float *scale, long T, long D, double eps, float *y) {
  for (long t = 0; t < T; t++, x += D, y += D) {
    double sum = 0;
    for (long d = 0; d < D; d++) sum += (double)x[d] * x[d];
    double factor = 1 / sqrt(sum / D + eps);
    for (long d = 0; d < D; d++) y[d] = x[d] * factor * scale[d];
  }
}

// d_y (T, F), x (T, 2F), gates at even and ups at odd entries -> d_x (T, 2F): 0 beyond the clamps.
static void swiglu_backward(const float *d_y, const float *x, long pairs, double alpha,
                            double limit, float *d_x) {
  for (long i = 0; i < pairs; i++) {
    double gate = fmin(x[2 * i], limit), up = fmax(fmin(x[2 * i + 1], limit), -limit);
    double s = 1 / (1 + exp(-alpha * gate));
    double d_gate = d_y[i] * (up + 1) * (s + alpha * gate * s * (1 - s));
    d_x[2 * i] = x[2 * i] <= limit ? d_gate : 0;  // the gate has no clamp from below
    d_x[2 * i + 1] = fabs(x[2 * i + 1]) <= limit ? d_y[i] * gate * s : 0;
  }
}

// d_weights (T, A), logits (T, E), the chosen (T, A) -> d_logits (T, E): 0 for those not chosen.
static void router_backward(const float *d_weights, const float *logits, const int32_t *chosen,
                            long T, long A, long E, float *d_logits) {
  for (long t = 0; t < T; t++, d_weights += A, chosen += A, logits += E, d_logits += E) {
    double total = 0, delta = 0, top = -INFINITY;
    for (long a = 0; a < A; a++) top = fmax(top, logits[chosen[a]]);
    for (long a = 0; a < A; a++) total += exp(logits[chosen[a]] - top);
    for (long a = 0; a < A; a++) delta += exp(logits[chosen[a]] - top) / total * d_weights[a];
    for (long e = 0; e < E; e++) d_logits[e] = 0;
    for (long a = 0; a < A; a++)
      d_logits[chosen[a]] = exp(logits[chosen[a]] - top) / total * (d_weights[a] - delta);
  }
}

// Equal, the sign of zero included, or with a relative L2 error within the tolerance.
static int agrees(const float *ours, const float *expected, long count, double tolerance) {
  double distance = 0, size = 0;
  int equal = 1;
  for (long i = 0; i < count; i++) {
    equal &= (isnan(ours[i]) && isnan(expected[i])) || !memcmp(ours + i, expected + i, 4);
    distance += pow((double)ours[i] - expected[i], 2);
    size += pow(expected[i], 2);
  }
  return equal || (tolerance > 0 && sqrt(distance) <= tolerance * sqrt(size));
}

static const char *named(const char *id, const char *name, int other) {
  static char key[256];
  int used = snprintf(key, sizeof key, "%s/%s", id, name);
  if (other) snprintf(key + used, sizeof key - used, ".or%d", other);
  return key;
}

// The output that this program computes of an operation; NULL if it computes none.
static const char *output_of(const char *operation) {
  static const char *known[][2] = {{"mxfp4_decode", "values"},
                                   {"rmsnorm", "y"},
                                   {"swiglu_backward", "d_x"},
                                   {"router_backward", "d_logits"}};
  for (int i = 0; i < 4; i++)
    if (!strcmp(operation, known[i][0])) return known[i][1];
  return NULL;
}

static void run(const char *operation, const char *vectors, const char *results) {
  char *name = text(member(operation, "name")), *file_name = text(member(operation, "file"));
  char *file = contents(vectors, file_name);
  double tolerance = atof(member(member(operation, "tolerance"), "float32"));
  Results out = {{0}, 0, 0, NULL};
  int right = 0, cases = 0;
  for (const char *c = first(member(operation, "cases")); c; c = next(c), cases++) {
    char *id = text(member(c, "id"));
    const char *parameters = member(c, "parameters"), *output = output_of(name);
    Tensor expected = tensor(file, named(id, output, 0));
    long count = expected.shape[0] * expected.shape[1];
    float *ours = malloc(count * sizeof *ours);
    if (!strcmp(name, "mxfp4_decode")) {
      Tensor blocks = tensor(file, named(id, "blocks", 0));
      mxfp4_decode(blocks.data, tensor(file, named(id, "scales", 0)).data, count / 32, ours);
    } else if (!strcmp(name, "swiglu_backward")) {
      Tensor d_y = tensor(file, named(id, "d_y", 0)), x = tensor(file, named(id, "x", 0));
      double alpha = atof(member(parameters, "alpha")), limit = atof(member(parameters, "limit"));
      swiglu_backward(d_y.data, x.data, count / 2, alpha, limit, ours);
    } else if (!strcmp(name, "router_backward")) {
      Tensor d = tensor(file, named(id, "d_weights", 0)), l = tensor(file, named(id, "logits", 0));
      Tensor chosen = tensor(file, named(id, "indices", 0));
      router_backward(d.data, l.data, chosen.data, l.shape[0], d.shape[1], l.shape[1], ours);
    } else {
      Tensor x = tensor(file, named(id, "x", 0)), scale = tensor(file, named(id, "scale", 0));
      double eps = atof(member(parameters, "eps"));
      rmsnorm(x.data, scale.data, x.shape[0], x.shape[1], eps, ours);
    }
    add(&out, named(id, output, 0), expected.rank, expected.shape, ours);
    Tensor answer = expected;
    int agreed = 0;
    for (int other = 1; answer.data; answer = tensor(file, named(id, output, other++)))
      agreed |= agrees(ours, answer.data, count, tolerance);
    right += agreed;
    free(ours);
    free(id);
  }
  save(&out, results, file_name);
  printf("%s: %d of %d right\n", name, right, cases);
  free(out.data);
  free(file);
  free(file_name);
  free(name);
}

int main(int argc, char **argv) {
  if (argc != 3) return fprintf(stderr, "usage: check VECTORS RESULTS\n"), 2;
  char *manifest = contents(argv[1], "manifest.json");
  for (const char *o = first(member(manifest, "operations")); o; o = next(o)) {
    char *name = text(member(o, "name"));
    if (output_of(name)) run(o, argv[1], argv[2]);
    free(name);
  }
  free(manifest);
  return 0;
}
