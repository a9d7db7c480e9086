#pragma once

#include "common/math.hpp"

SPCT_BEGIN_LEVEL

/// cap * tanh(x / cap); x as it is where cap is 0.
SPCT_INLINE vf soft_cap(vf x, float cap) { return cap > 0.0f ? tanh(x / cap) * cap : x; }

SPCT_END_LEVEL
