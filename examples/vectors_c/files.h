// Just enough JSON to walk a manifest, and safetensors files: eight bytes of header length, a JSON
// header with each tensor's dtype, shape and byte range, and the bytes. For little-endian machines.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what, const char *which) {
  fprintf(stderr, "%s: %s\n", which, what);
  exit(2);
}

static const char *space(const char *p) { return p + strspn(p, " \n\r\t"); }

// Just behind the value at p.
static const char *behind(const char *p) {
  int depth = 0;
  do {
    p = space(p);
    if (*p == '"') {
      for (p++; *p != '"'; p++) p += *p == '\\';
      p++;
    } else if (strchr("{[", *p)) {
      depth++, p++;
    } else if (strchr("}]", *p)) {
      depth--, p++;
    } else if (strchr(",:", *p)) {
      p++;
    } else {
      p += strcspn(p, ",:]} \n\r\t");  // a number, true, false or null
    }
  } while (depth);
  return p;
}

// First value of an array, or first key of an object; NULL if it is empty.
static const char *first(const char *p) { return p = space(p + 1), strchr("]}", *p) ? NULL : p; }

// What follows a value in its array or object; NULL at the end.
static const char *next(const char *p) {
  p = space(behind(p));
  return *p == ',' ? space(p + 1) : NULL;
}

// The value of a key, NULL if the object has no such key. Keys here hold no escapes.
static const char *member(const char *object, const char *key) {
  for (const char *k = first(object); k;) {
    const char *value = space(space(behind(k)) + 1);
    if (!strncmp(k + 1, key, strlen(key)) && k[1 + strlen(key)] == '"') return value;
    k = next(value);
  }
  return NULL;
}

// A string's characters, as a new C string.
static char *text(const char *p) {
  size_t length = strcspn(p + 1, "\"");
  return memcpy(calloc(length + 1, 1), p + 1, length);
}

// A whole file, a zero behind it.
static char *contents(const char *folder, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "rb");
  if (!file) fail("cannot be read", path);
  fseek(file, 0, SEEK_END);
  long size = ftell(file);
  rewind(file);
  char *bytes = calloc(size + 1, 1);
  if (fread(bytes, 1, size, file) != (size_t)size) fail("cannot be read", path);
  fclose(file);
  return bytes;
}

typedef struct {
  int rank;
  long shape[4];
  const void *data;  // float, int32_t or uint8_t; NULL: there is no such tensor
} Tensor;

static Tensor tensor(const char *file, const char *name) {
  Tensor t = {0};
  uint64_t length;
  memcpy(&length, file, 8);
  const char *entry = member(file + 8, name);
  if (!entry) return t;
  for (const char *p = first(member(entry, "shape")); p; p = next(p)) t.shape[t.rank++] = atol(p);
  t.data = file + 8 + length + atol(first(member(entry, "data_offsets")));
  return t;
}

// Tensors to be written, all float32.
typedef struct {
  char header[1 << 16];
  size_t used, size;  // bytes of header and of data
  char *data;
} Results;

static void add(Results *r, const char *name, int rank, const long *shape, const float *values) {
  size_t bytes = sizeof *values;
  char *to = r->header + r->used;
  to += sprintf(to, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[", r->used ? "," : "{", name);
  for (int i = 0; i < rank; i++) {
    to += sprintf(to, "%s%ld", i ? "," : "", shape[i]);
    bytes *= shape[i];
  }
  to += sprintf(to, "],\"data_offsets\":[%zu,%zu]}", r->size, r->size + bytes);
  r->used = to - r->header;
  r->data = realloc(r->data, r->size + bytes);
  memcpy(r->data + r->size, values, bytes);
  r->size += bytes;
}

static void save(Results *r, const char *folder, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *file = fopen(path, "wb");
  if (!file) fail("cannot be written", path);
  uint64_t length = r->used + 1;
  fwrite(&length, 8, 1, file);
  fwrite(r->header, 1, r->used, file);
  fputc('}', file);
  fwrite(r->data, 1, r->size, file);
  if (fclose(file)) fail("cannot be written", path);
}
