// The threads of this process, as the kernel knows them.
#pragma once

#include <cstdint>
#include <map>
#include <set>

namespace uffda::test {

std::set<int> threads();
/// How often each of them has gone to sleep.
std::map<int, std::uint64_t> sleeps(const std::set<int>& of);

}  // namespace uffda::test
