// The parts of a decoder layer that are no matrix products, for float and double.
//
// Every output row is computed by one thread in one order: results do not depend on the number of threads.
// Matrices are dense and row-major: n rows, d columns. K key/value heads have G query heads each, of C numbers.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

// exp(x) for x <= 88, by 2^n * p(r) with |r| <= ln 2 / 2 and Cephes' polynomial: within 2 ulp, and compilers can
// vectorise it, which they cannot do with the C library's. What underflows is 1e-38 instead of 0; a NaN stays one.
static inline float exp_(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float n = __builtin_rintf(x * 1.44269504088896341f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return (p * r * r + r + 1.0f) * power;
}
static inline double exp_(double x) { return std::exp(x); }

static inline float sigmoid(float x) { return 1.0f / (1.0f + exp_(x < -88.0f ? 88.0f : -x)); }
static inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

template <class T>
static T root_mean_square(const T *x, int64_t d, T eps) {
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < d; c++) squares += x[c] * x[c];
  return std::sqrt(squares / d + eps);
}

// out = x / rms(x) * w
template <class T>
static void rms_norm(const T *x, const T *w, T *out, int64_t n, int64_t d, T eps) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    const T *a = x + t * d, scale = 1 / root_mean_square(a, d, eps);
    T *o = out + t * d;
#pragma omp simd
    for (int64_t c = 0; c < d; c++) o[c] = a[c] * scale * w[c];
  }
}

// dx, for dy = d loss / d out
template <class T>
static void rms_norm_grad(const T *dy, const T *x, const T *w, T *dx, int64_t n, int64_t d, T eps) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    const T *a = x + t * d, *g = dy + t * d, scale = 1 / root_mean_square(a, d, eps);
    T *o = dx + t * d, along = 0;
#pragma omp simd reduction(+ : along)
    for (int64_t c = 0; c < d; c++) along += g[c] * w[c] * a[c];
    along *= scale * scale * scale / d;
#pragma omp simd
    for (int64_t c = 0; c < d; c++) o[c] = scale * g[c] * w[c] - along * a[c];
  }
}

// rows of gu hold gates and ups, d each: out = silu(gate) * up
template <class T>
static void gate(const T *gu, T *out, int64_t n, int64_t d) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    const T *g = gu + t * 2 * d, *u = g + d;
    T *o = out + t * d;
#pragma omp simd
    for (int64_t c = 0; c < d; c++) o[c] = g[c] * sigmoid(g[c]) * u[c];
  }
}

// from d loss / d out: dgu, and `out` again
template <class T>
static void gate_grad(const T *dy, const T *gu, T *out, T *dgu, int64_t n, int64_t d) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    const T *g = gu + t * 2 * d, *u = g + d, *e = dy + t * d;
    T *o = out + t * d, *dg = dgu + t * 2 * d, *du = dg + d;
#pragma omp simd
    for (int64_t c = 0; c < d; c++) {
      const T s = sigmoid(g[c]), silu = g[c] * s;
      o[c] = silu * u[c];
      dg[c] = e[c] * u[c] * (s + silu * (1 - s));
      du[c] = e[c] * silu;
    }
  }
}

template <class T>
static void turn(const T *x, const T *cos, const T *sin, T *out, int64_t C) {
  const int64_t half = C / 2;
#pragma omp simd
  for (int64_t c = 0; c < half; c++) {
    const T a = x[c], b = x[c + half];
    out[c] = a * cos[c] - b * sin[c];
    out[c + half] = b * cos[c + half] + a * sin[c + half];
  }
}

template <class T>
static void turn_back(const T *d, const T *cos, const T *sin, T *out, int64_t C) {
  const int64_t half = C / 2;
#pragma omp simd
  for (int64_t c = 0; c < half; c++) {
    const T a = d[c], b = d[c + half];
    out[c] = a * cos[c] + b * sin[c + half];
    out[c + half] = b * cos[c + half] - a * sin[c];
  }
}

// rows of qkv (K*G + 2K heads) by rotary embeddings (n, C) to q (K, n, G, C), k (K, n, C) and v (K, n, C)
template <class T>
static void rotate(const T *qkv, const T *cos, const T *sin, T *q, T *k, T *v, int64_t n, int64_t K, int64_t G,
                   int64_t C) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    const T *row = qkv + t * (G + 2) * K * C, *co = cos + t * C, *si = sin + t * C;
    for (int64_t h = 0; h < K; h++) {
      for (int64_t g = 0; g < G; g++) turn(row + (h * G + g) * C, co, si, q + ((h * n + t) * G + g) * C, C);
      turn(row + (K * G + h) * C, co, si, k + (h * n + t) * C, C);
      std::memcpy(v + (h * n + t) * C, row + (K * G + K + h) * C, C * sizeof(T));
    }
  }
}

template <class T>
static void rotate_grad(const T *dq, const T *dk, const T *dv, const T *cos, const T *sin, T *dqkv, int64_t n,
                        int64_t K, int64_t G, int64_t C) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    T *row = dqkv + t * (G + 2) * K * C;
    const T *co = cos + t * C, *si = sin + t * C;
    for (int64_t h = 0; h < K; h++) {
      for (int64_t g = 0; g < G; g++) turn_back(dq + ((h * n + t) * G + g) * C, co, si, row + (h * G + g) * C, C);
      turn_back(dk + (h * n + t) * C, co, si, row + (K * G + h) * C, C);
      std::memcpy(row + (K * G + K + h) * C, dv + (h * n + t) * C, C * sizeof(T));
    }
  }
}

// A block of scores: queries first..last (tokens) against keys key..key + n_keys, the rows of a head one after the
// other, token by token and G a token, beginning at `offset` of the scores. Of keys among which its own segment begins,
// a token sees what lies between that and itself; of others, which are those of its ancestors, it sees all.
struct Block {
  int64_t first, last, key, n_keys, offset;
};

struct Seen {
  int64_t from, to;  // keys of the block
};

static inline Seen seen(const Block &b, const int64_t *begin, int64_t t) {
  return begin[t] < b.key + b.n_keys ? Seen{begin[t] - b.key, t - b.key + 1} : Seen{0, b.n_keys};
}

template <class T>
static T *row_of(T *scores, const Block &b, int64_t h, int64_t t, int64_t g, int64_t G) {
  return scores + b.offset + ((h * (b.last - b.first) + t - b.first) * G + g) * b.n_keys;
}

// One softmax over all blocks that hold a row, in place; lse (K, n, G) is the logarithm of its sum. begin (n): where
// each token's own segment begins.
template <class T>
static void softmax(T *scores, T *lse, const int64_t *begin, const Block *blocks, int64_t n_blocks, int64_t first,
                    int64_t last, int64_t n, int64_t K, int64_t G) {
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t h = 0; h < K; h++)
    for (int64_t t = first; t < last; t++)
      for (int64_t g = 0; g < G; g++) {
        T top = -std::numeric_limits<T>::max(), sum = 0;
        for (int64_t i = 0; i < n_blocks; i++) {
          const Block &b = blocks[i];
          if (t < b.first || t >= b.last) continue;
          const T *s = row_of(scores, b, h, t, g, G);
          const Seen keys = seen(b, begin, t);
#pragma omp simd reduction(max : top)
          for (int64_t c = keys.from; c < keys.to; c++) top = s[c] > top ? s[c] : top;
        }
        for (int64_t i = 0; i < n_blocks; i++) {
          const Block &b = blocks[i];
          if (t < b.first || t >= b.last) continue;
          T *s = row_of(scores, b, h, t, g, G);
          const Seen keys = seen(b, begin, t);
          for (int64_t c = 0; c < keys.from; c++) s[c] = 0;
#pragma omp simd reduction(+ : sum)
          for (int64_t c = keys.from; c < keys.to; c++) {
            s[c] = exp_(s[c] - top);
            sum += s[c];
          }
          for (int64_t c = keys.to; c < b.n_keys; c++) s[c] = 0;
        }
        const T scale = 1 / sum;
        for (int64_t i = 0; i < n_blocks; i++) {
          const Block &b = blocks[i];
          if (t < b.first || t >= b.last) continue;
          T *s = row_of(scores, b, h, t, g, G);
          const Seen keys = seen(b, begin, t);
#pragma omp simd
          for (int64_t c = keys.from; c < keys.to; c++) s[c] *= scale;
        }
        lse[(h * n + t) * G + g] = top + std::log(sum);
      }
}

// From the scores of one block, and d loss / d probabilities in `grad`: the probabilities into `scores`, and into
// `grad` scale * d loss / d scores. along (K, n, G) is the sum of d loss / d out times out of each row.
template <class T>
static void softmax_grad(T *scores, T *grad, const T *lse, const T *along, const int64_t *begin, const Block *block,
                         T scale, int64_t n, int64_t K, int64_t G) {
  const Block &b = *block;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t h = 0; h < K; h++)
    for (int64_t t = b.first; t < b.last; t++) {
      const Seen keys = seen(b, begin, t);
      for (int64_t g = 0; g < G; g++) {
        T *s = row_of(scores, b, h, t, g, G), *d = row_of(grad, b, h, t, g, G);
        const T log_sum = lse[(h * n + t) * G + g], mean = along[(h * n + t) * G + g];
        for (int64_t c = 0; c < keys.from; c++) s[c] = d[c] = 0;
#pragma omp simd
        for (int64_t c = keys.from; c < keys.to; c++) {
          s[c] = exp_(s[c] - log_sum);
          d[c] = s[c] * (d[c] - mean) * scale;
        }
        for (int64_t c = keys.to; c < b.n_keys; c++) s[c] = d[c] = 0;
      }
    }
}

// dy and out (n, K, G, C), as they leave the attention, to dy by heads (K, n, G, C) and the sums of dy * out (K, n, G)
template <class T>
static void by_heads(const T *dy, const T *out, T *spread, T *along, int64_t n, int64_t K, int64_t G, int64_t C) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++)
    for (int64_t h = 0; h < K; h++)
      for (int64_t g = 0; g < G; g++) {
        const T *a = dy + ((t * K + h) * G + g) * C, *b = out + ((t * K + h) * G + g) * C;
        T *o = spread + ((h * n + t) * G + g) * C, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < C; c++) {
          o[c] = a[c];
          sum += a[c] * b[c];
        }
        along[(h * n + t) * G + g] = sum;
      }
}

// Row by row of logits (n, d): the logarithm of the sum of their exponentials, and how far the target is below it
template <class T>
static void nll(const T *logits, const int64_t *targets, T *lse, T *out, int64_t n, int64_t d) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    const T *l = logits + t * d;
    T top = -std::numeric_limits<T>::max();
#pragma omp simd reduction(max : top)
    for (int64_t c = 0; c < d; c++) top = l[c] > top ? l[c] : top;
    double total = 0;  // in parts: a float's sum of 50,000 terms would lose digits
    for (int64_t at = 0; at < d; at += 4096) {
      const int64_t end = at + 4096 < d ? at + 4096 : d;
      T sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t c = at; c < end; c++) sum += exp_(l[c] - top);
      total += sum;
    }
    const T log_total = static_cast<T>(std::log(total));
    lse[t] = top + log_total;
    out[t] = (top - l[targets[t]]) + log_total;
  }
}

// The gradient of the sum of weight * (lse - logit of the target), row by row of logits (n, d)
template <class T>
static void nll_grad(const T *logits, const T *lse, const int64_t *targets, const T *weights, T *grad, int64_t n,
                     int64_t d) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < n; t++) {
    const T *l = logits + t * d, log_sum = lse[t], weight = weights[t];
    T *g = grad + t * d;
#pragma omp simd
    for (int64_t c = 0; c < d; c++) g[c] = weight * exp_(l[c] - log_sum);
    g[targets[t]] -= weight;
  }
}

// What Python calls: name_float and name_double
#define BOTH(name, parameters, ...)                                     \
  extern "C" void name##_float parameters(float) { name<float>(__VA_ARGS__); } \
  extern "C" void name##_double parameters(double) { name<double>(__VA_ARGS__); }

#define NORM(T) (const T *x, const T *w, T *out, int64_t n, int64_t d, double eps)
BOTH(rms_norm, NORM, x, w, out, n, d, eps)
#define NORM_GRAD(T) (const T *dy, const T *x, const T *w, T *dx, int64_t n, int64_t d, double eps)
BOTH(rms_norm_grad, NORM_GRAD, dy, x, w, dx, n, d, eps)
#define GATE(T) (const T *gu, T *out, int64_t n, int64_t d)
BOTH(gate, GATE, gu, out, n, d)
#define GATE_GRAD(T) (const T *dy, const T *gu, T *out, T *dgu, int64_t n, int64_t d)
BOTH(gate_grad, GATE_GRAD, dy, gu, out, dgu, n, d)
#define ROTATE(T) \
  (const T *qkv, const T *cos, const T *sin, T *q, T *k, T *v, int64_t n, int64_t K, int64_t G, int64_t C)
BOTH(rotate, ROTATE, qkv, cos, sin, q, k, v, n, K, G, C)
#define ROTATE_GRAD(T) \
  (const T *dq, const T *dk, const T *dv, const T *cos, const T *sin, T *dqkv, int64_t n, int64_t K, int64_t G, \
   int64_t C)
BOTH(rotate_grad, ROTATE_GRAD, dq, dk, dv, cos, sin, dqkv, n, K, G, C)
#define SOFTMAX(T) \
  (T *scores, T *lse, const int64_t *begin, const Block *blocks, int64_t n_blocks, int64_t first, int64_t last, \
   int64_t n, int64_t K, int64_t G)
BOTH(softmax, SOFTMAX, scores, lse, begin, blocks, n_blocks, first, last, n, K, G)
#define SOFTMAX_GRAD(T) \
  (T *scores, T *grad, const T *lse, const T *along, const int64_t *begin, const Block *block, double scale, \
   int64_t n, int64_t K, int64_t G)
BOTH(softmax_grad, SOFTMAX_GRAD, scores, grad, lse, along, begin, block, scale, n, K, G)
#define BY_HEADS(T) (const T *dy, const T *out, T *spread, T *along, int64_t n, int64_t K, int64_t G, int64_t C)
BOTH(by_heads, BY_HEADS, dy, out, spread, along, n, K, G, C)
#define NLL(T) (const T *logits, const int64_t *targets, T *lse, T *out, int64_t n, int64_t d)
BOTH(nll, NLL, logits, targets, lse, out, n, d)
#define NLL_GRAD(T) \
  (const T *logits, const T *lse, const int64_t *targets, const T *weights, T *grad, int64_t n, int64_t d)
BOTH(nll_grad, NLL_GRAD, logits, lse, targets, weights, grad, n, d)
