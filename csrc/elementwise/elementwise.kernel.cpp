#include "elementwise/elementwise.hpp"

#include "common/math.hpp"
#include "common/parallel.hpp"
#include "common/scratch.hpp"

SPCT_BEGIN_LEVEL
namespace {

// Below about this many elements a thread's start costs more than its work.
constexpr int64_t kGrainElements = 16384;

SPCT_INLINE int64_t row_grain(int64_t width) { return kGrainElements / (width > 0 ? width : 1) + 1; }

/// 1 / sqrt(mean of squares + eps), summed in kWidth lanes in order of the elements.
template <class T>
SPCT_INLINE float inverse_rms(const T* x, int64_t width, float eps) {
  vf squares{};
  for_vectors(width, [&](int64_t i, int count) {
    const vf v = load_some(x + i, count);
    squares = fma(v, v, squares);
  });
  return 1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(width) + eps);
}

template <class T, class W>
void rms_norm_row(const RmsNormArgs& args, int64_t row) {
  const int64_t width = args.width;
  const T* x = static_cast<const T*>(args.x) + row * width;
  const W* weight = static_cast<const W*>(args.weight);
  T* out = static_cast<T*>(args.out) + row * width;
  if (args.residual != nullptr) {
    const T* residual = static_cast<const T*>(args.residual) + row * width;
    T* stored = static_cast<T*>(args.sum) + row * width;
    for_vectors(width, [&](int64_t i, int count) {
      store_some(stored + i, load_some(x + i, count) + load_some(residual + i, count), count);
    });
    x = stored;  // what is normalised is what is stored: the same number for every dtype
  }
  const vf scale = splat(inverse_rms(x, width, args.eps));
  for_vectors(width, [&](int64_t i, int count) {
    store_some(out + i, load_some(x + i, count) * scale * load_some(weight + i, count), count);
  });
}

template <class T>
SPCT_INLINE vf activate(vf x, Activation kind) {
  switch (kind) {
    case Activation::kSilu:
      return x * sigmoid(x);
    case Activation::kGeluTanh:
      // x/2 (1 + tanh(u)) = x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3)
      return x * sigmoid(x * 1.5957691f * fma(x * x, splat(0.044715f), splat(1.0f)));
    default:
      return x * normal_cdf(x);
  }
}

template <class T>
void gated_activation_rows(const GatedActivationArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(args.gate_up) + row * 2 * args.width;
    const T* up = gate + args.width;
    T* out = static_cast<T*>(args.out) + row * args.width;
    for_vectors(args.width, [&](int64_t i, int count) {
      store_some(out + i, activate<T>(load_some(gate + i, count), args.kind) * load_some(up + i, count), count);
    });
  }
}

/// Norm (optional) and rotation of one head: `from` of the activations' dtype, `to` of any.
template <class From, class To>
SPCT_INLINE void rotate_head(const From* from, To* to, const float* norm, const float* cos, const float* sin,
                             const RopeAppendArgs& args, float* head) {
  const int64_t dim = args.head_dim, pairs = args.rotary_pairs;
  const float scale = norm != nullptr ? inverse_rms(from, dim, args.norm_eps) : 1.0f;
  for_vectors(dim, [&](int64_t i, int count) {
    vf x = load_some(from + i, count);
    if (norm != nullptr) x = x * splat(scale) * load_some(norm + i, count);
    store_some(head + i, x, count);
  });
  for_vectors(pairs, [&](int64_t i, int count) {
    const vf first = load_some(head + i, count), second = load_some(head + pairs + i, count);
    const vf c = load_some(cos + i, count), s = load_some(sin + i, count);
    store_some(to + i, first * c - second * s, count);
    store_some(to + pairs + i, second * c + first * s, count);
  });
  for_vectors(dim - 2 * pairs, [&](int64_t i, int count) {
    store_some(to + 2 * pairs + i, load_some(head + 2 * pairs + i, count), count);
  });
}

/// A row's queries, turned, into q.
template <class T, class Q>
SPCT_INLINE void turn_queries(const RopeAppendArgs& args, int64_t row, const T* in, const float* cos, const float* sin,
                              float* head) {
  const int64_t dim = args.head_dim;
  Q* q = static_cast<Q*>(args.q) + row * args.num_heads * dim;
  for (int64_t h = 0; h < args.num_heads; ++h) {
    rotate_head(in + h * dim, q + h * dim, args.q_norm, cos, sin, args, head);
  }
}

/// A row's keys, turned, and its values, into their slot.
template <class T, class C>
SPCT_INLINE void append_row(const RopeAppendArgs& args, int64_t row, const T* in, const float* cos, const float* sin,
                            float* head) {
  const int64_t dim = args.head_dim, heads = args.num_heads, kv_heads = args.num_kv_heads;
  C* k = static_cast<C*>(args.k_cache) + args.slots[row] * args.k_slot_stride;
  C* v = static_cast<C*>(args.v_cache) + args.slots[row] * args.v_slot_stride;
  for (int64_t h = 0; h < kv_heads; ++h) {
    const T* value = in + (heads + kv_heads + h) * dim;
    rotate_head(in + (heads + h) * dim, k + h * args.k_head_stride, args.k_norm, cos, sin, args, head);
    for_vectors(dim, [&](int64_t i, int count) {
      store_some(v + h * args.v_head_stride + i, load_some(value + i, count), count);
    });
  }
}

template <class T>
void rope_append_rows(const RopeAppendArgs& args, int64_t begin, int64_t end) {
  float* head = scratch<float>(Scratch::kRowState, static_cast<size_t>(args.head_dim) + kWidth);
  for (int64_t row = begin; row < end; ++row) {
    const T* in = static_cast<const T*>(args.qkv) + row * (args.num_heads + 2 * args.num_kv_heads) * args.head_dim;
    const float* cos = args.cos + row * args.rotary_pairs;
    const float* sin = args.sin + row * args.rotary_pairs;
    SPCT_FLOAT_DTYPES(args.q_dtype, turn_queries<T, Scalar>(args, row, in, cos, sin, head))
    SPCT_FLOAT_DTYPES(args.cache_dtype, append_row<T, Scalar>(args, row, in, cos, sin, head))
  }
}

template <class T>
void rms_norm_rows(const RmsNormArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    SPCT_FLOAT_DTYPES(args.weight_dtype, rms_norm_row<T, Scalar>(args, row))
  }
}

}  // namespace

void rms_norm(const RmsNormArgs& args) {
  parallel_for(0, args.rows, row_grain(args.width), [&](int64_t begin, int64_t end) {
    SPCT_FLOAT_DTYPES(args.dtype, rms_norm_rows<Scalar>(args, begin, end))
  });
}

void gated_activation(const GatedActivationArgs& args) {
  parallel_for(0, args.rows, row_grain(args.width), [&](int64_t begin, int64_t end) {
    SPCT_FLOAT_DTYPES(args.dtype, gated_activation_rows<Scalar>(args, begin, end))
  });
}

void rope_append(const RopeAppendArgs& args) {
  const int64_t width = (args.num_heads + 2 * args.num_kv_heads) * args.head_dim;
  parallel_for(0, args.rows, row_grain(width), [&](int64_t begin, int64_t end) {
    SPCT_FLOAT_DTYPES(args.dtype, rope_append_rows<Scalar>(args, begin, end))
  });
}

SPCT_END_LEVEL
