// Any source as memory: counts the lines of what a URI names, as `wc -l` does with a file.
//
//   map_file file:/usr/share/common-licenses/GPL-3
#include <algorithm>
#include <cstdio>

#include "uffda/uffda.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: map_file URI\n");
    return 2;
  }
  // Nothing is read here, only opened.
  const auto memory = uffda::map(argv[1]);
  if (!memory) {
    std::fprintf(stderr, "map_file: %s\n", memory.error().message().c_str());
    return 1;
  }
  // Every page is fetched when the loop first touches it.
  const auto bytes = memory->bytes();
  const auto lines = std::count(bytes.begin(), bytes.end(), std::byte{'\n'});
  std::printf("%lld lines in %zu bytes\n", static_cast<long long>(lines), bytes.size());
}
