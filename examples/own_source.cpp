// A source of one's own: an array of two thousand million squares, 16 GiB of memory of which only what is touched
// exists.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <utility>

#include "uffda/uffda.h"

namespace {

using Word = std::uint64_t;
constexpr uffda::ByteCount kSize{std::uint64_t{16} << 30U};

/// The word at index i is i * i. A source answers byte ranges; it knows nothing of pages.
class Squares final : public uffda::PageSource {
 public:
  Squares() { opened("squares", {.size = kSize, .block_size = {sizeof(Word)}}); }

 private:
  // Called by the threads that handle faults, several at once. What takes long is answered later, from a thread of the
  // source's own.
  void do_fetch(uffda::FetchTicket ticket) noexcept override {
    const auto words = ticket.buffer().size() / sizeof(Word);
    auto* out = reinterpret_cast<Word*>(ticket.buffer().data());  // buffers start at a page
    Word index = ticket.range().start.value / sizeof(Word);
    for (std::size_t i = 0; i < words; ++i, ++index) out[i] = index * index;
    std::move(ticket).complete(ticket.range().length);
  }
};

int fail(const uffda::Error& error) {
  std::fprintf(stderr, "own_source: %s\n", error.message().c_str());
  return 1;
}

}  // namespace

int main() {
  auto engine = uffda::Engine::create();
  if (!engine) return fail(engine.error());
  const auto memory = engine->map(std::make_unique<Squares>());
  if (!memory) return fail(memory.error());

  const auto* squares = reinterpret_cast<const Word*>(memory->bytes().data());
  const Word count = memory->bytes().size() / sizeof(Word);
  Word index = 1;
  for (int i = 0; i < 1000; ++i) {
    index = (index * 6364136223846793005U + 1442695040888963407U) % count;
    if (squares[index] != index * index) {
      std::fprintf(stderr, "own_source: wrong at %llu\n", static_cast<unsigned long long>(index));
      return 1;
    }
  }
  const auto report = engine->report();
  std::printf("1000 of %llu squares looked up: %llu faults, %llu KiB made\n", static_cast<unsigned long long>(count),
              static_cast<unsigned long long>(report.faults_missing + report.faults_cached),
              static_cast<unsigned long long>(report.bytes_fetched.value / 1024));
}
