// The choice of the compiled kernels that the operators use.
#pragma once

#include <string>

#include "kernels.h"
#include "roi_kernels.h"

namespace deform_conv {

// Return the kernels of the best capability that this processor has, or of the one that
// use_capability has chosen.
const Table& kernels_in_use();
const RoiTable& roi_kernels_in_use();

// Returns the names of the capabilities of this processor, from the least to the best.
std::string capabilities();

// Chooses a capability by its name and returns the name of the previous one. Throws if this
// processor does not have it.
std::string use_capability(const std::string& name);

}  // namespace deform_conv
