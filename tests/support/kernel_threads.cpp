#include "support/kernel_threads.h"

#include <filesystem>
#include <fstream>
#include <string>

namespace uffda::test {

std::set<int> threads() {
  std::set<int> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task"))
    found.insert(std::stoi(entry.path().filename()));
  return found;
}

std::map<int, std::uint64_t> sleeps(const std::set<int>& of) {
  std::map<int, std::uint64_t> counts;
  for (const int thread : of) {
    std::ifstream status("/proc/self/task/" + std::to_string(thread) + "/status");
    for (std::string word; status >> word;) {
      if (word == "voluntary_ctxt_switches:") status >> counts[thread];
    }
  }
  return counts;
}

}  // namespace uffda::test
