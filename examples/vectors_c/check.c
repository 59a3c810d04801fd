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

static void run(const char *operation, const char *vectors, const char *results) {
  char *name = text(member(operation, "name")), *file_name = text(member(operation, "file"));
  char *file = contents(vectors, file_name);
  double tolerance = atof(member(member(operation, "tolerance"), "float32"));
  Results out = {{0}, 0, 0, NULL};
  int right = 0, cases = 0;
  for (const char *c = first(member(operation, "cases")); c; c = next(c), cases++) {
    char *id = text(member(c, "id"));
    int decoding = !strcmp(name, "mxfp4_decode");
    const char *output = decoding ? "values" : "y";
    Tensor expected = tensor(file, named(id, output, 0));
    long count = expected.shape[0] * expected.shape[1];
    float *ours = malloc(count * sizeof *ours);
    if (decoding) {
      Tensor blocks = tensor(file, named(id, "blocks", 0));
      mxfp4_decode(blocks.data, tensor(file, named(id, "scales", 0)).data, count / 32, ours);
    } else {
      Tensor x = tensor(file, named(id, "x", 0)), scale = tensor(file, named(id, "scale", 0));
      double eps = atof(member(member(c, "parameters"), "eps"));
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
    if (!strcmp(name, "mxfp4_decode") || !strcmp(name, "rmsnorm")) run(o, argv[1], argv[2]);
    free(name);
  }
  free(manifest);
  return 0;
}
