// Streaming Harmony in C, tried on the conformance vectors. C99, no library.
//
//   cc -O2 -o harmony examples/vectors_c/harmony.c
//   gptoss-ref vectors VECTORS
//   mkdir RESULTS && ./harmony VECTORS RESULTS
//   gptoss-ref vectors --check RESULTS
//
// For each token: the text that it makes certain. A character of several bytes may be cut anywhere;
// it is shown when it is whole, and bytes that can become none are shown as U+FFFD. Writes
// RESULTS/harmony.json.

#include "files.h"

typedef struct {
  unsigned char bytes[4];  // the beginning of a character
  int have, need;          // bytes there, and bytes of the whole; need 0: none has begun
} Decoder;

static void put(FILE *out, const unsigned char *bytes, int count) {
  for (int i = 0; i < count; i++) {
    if (bytes[i] < 0x20 || bytes[i] == '"' || bytes[i] == '\\')
      fprintf(out, "\\u%04x", bytes[i]);
    else
      fputc(bytes[i], out);
  }
}

static void broken(FILE *out) { fputs("\\ufffd", out); }

// Whether a second byte may follow the first: no overlong forms, surrogates, or beyond U+10FFFF.
static int fits(const Decoder *d, unsigned char byte) {
  unsigned char low = 0x80, high = 0xBF, first = d->bytes[0];
  if (d->have == 1 && first == 0xE0) low = 0xA0;
  if (d->have == 1 && first == 0xED) high = 0x9F;
  if (d->have == 1 && first == 0xF0) low = 0x90;
  if (d->have == 1 && first == 0xF4) high = 0x8F;
  return low <= byte && byte <= high;
}

static void feed(Decoder *d, unsigned char byte, FILE *out) {
  if (d->need && !fits(d, byte)) {
    broken(out);
    d->need = d->have = 0;
  }
  if (d->need) {
    d->bytes[d->have++] = byte;
  } else if (byte < 0x80) {
    put(out, &byte, 1);
  } else if (byte < 0xC2 || byte > 0xF4) {
    broken(out);
  } else {
    d->bytes[0] = byte, d->have = 1;
    d->need = byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
  }
  if (d->need && d->have == d->need) {
    put(out, d->bytes, d->need);
    d->need = d->have = 0;
  }
}

static void finish(Decoder *d, FILE *out) {
  if (d->need) broken(out);
  d->need = d->have = 0;
}

static int ends(const char *token) {
  return !strcmp(token, "<|end|>") || !strcmp(token, "<|return|>") || !strcmp(token, "<|call|>");
}

int main(int argc, char **argv) {
  if (argc != 3) return fprintf(stderr, "usage: harmony VECTORS RESULTS\n"), 2;
  char *file = contents(argv[1], "harmony.json"), path[4096];
  snprintf(path, sizeof path, "%s/harmony.json", argv[2]);
  FILE *out = fopen(path, "wb");
  if (!out) fail("cannot be written", path);
  int cases = 0;
  fputc('{', out);
  for (const char *c = first(member(file, "cases")); c; c = next(c)) {
    char *operation = text(member(c, "operation")), *id = text(member(c, "id"));
    if (!strcmp(operation, "stream")) {
      fprintf(out, "%s\n\"%s\": {\"deltas\": [", cases++ ? "," : "", id);
      Decoder decoder = {{0}, 0, 0};
      int inside = 0, count = 0;
      for (const char *t = first(member(member(c, "input"), "bytes")); t; t = next(t)) {
        char *token = text(t);
        fputs(count++ ? ", \"" : "\"", out);
        if (!strcmp(token, "<|message|>")) {
          inside = 1;
        } else if (ends(token)) {
          finish(&decoder, out);
          inside = 0;
        } else if (inside) {
          for (const char *p = token; *p; p += 2) {
            char pair[3] = {p[0], p[1], 0};
            feed(&decoder, (unsigned char)strtol(pair, NULL, 16), out);
          }
        }
        fputc('"', out);
        free(token);
      }
      fputs("]}", out);
    }
    free(operation);
    free(id);
  }
  fputs("\n}\n", out);
  fclose(out);
  free(file);
  printf("stream: %d answers\n", cases);
  return 0;
}
