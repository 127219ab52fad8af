// Which of the compiled kernels the operators use.
#pragma once

#include <string>

#include "kernels.h"
#include "roi_kernels.h"

namespace deform_conv {

// Of the best capability that the processor has, or the one chosen below.
const Table& kernels_in_use();
const RoiTable& roi_kernels_in_use();

// The names of the capabilities that this processor has, from the least to the best.
std::string capabilities();

// Chooses one of them by name and returns the name of the one before; throws on any other name.
std::string use_capability(const std::string& name);

}  // namespace deform_conv
