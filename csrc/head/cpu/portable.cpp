// The head's kernels for any processor.
#include "head/cpu/kernels.h"

#include "common/portable.inl"
#include "head/cpu/kernels.inl"
