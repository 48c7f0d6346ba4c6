// The sketches' kernels for any processor.
#include "sketch/kernels.h"

#include "common/portable.inl"
#include "sketch/kernels.inl"
