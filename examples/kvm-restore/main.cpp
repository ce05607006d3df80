// Restores a small virtual machine whose memory `uffda serve` has, page by page as it is touched, and checks every byte
// that the guest sees.
//
//   kvm-restore make FILE SIZE_MIB
//   kvm-restore firecracker SOCKET SIZE_MIB [memory=anon|memfd] [huge] [options]
//   kvm-restore handoff SOCKET EXPORT [options]
//
// Options: part=N: the guest uses so many per cent of its memory, the last of it (100); touch=N: it reads every Nth
// page of that (1); write=N: and writes every Nth of those (4; 0: none); balloon=MIB: and gives so much back, at the
// end of its memory (0); words=N: of a page that it reads or writes (512); wait: says "ready" when it has done so, and
// goes on when a line comes.
//
// Exit status 0: every byte was right; 1: some were not; 2: something failed; 77: there is no KVM.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fail.h"
#include "guest.h"
#include "restore.h"
#include "vm.h"

namespace {

using Clock = std::chrono::steady_clock;
constexpr std::uint64_t kWrittenSeed = 0xf111;

struct Options {
  std::map<std::string, std::uint64_t, std::less<>> numbers{
      {"part", 100}, {"touch", 1}, {"write", 4}, {"balloon", 0}, {"words", 512}};
  Kind kind = Kind::anonymous;
  Pages pages = Pages::small;
  bool wait = false;
};

Options parse(const std::vector<std::string>& words) {
  Options options;
  for (const std::string& word : words) {
    const auto equals = word.find('=');
    const auto number = options.numbers.find(std::string_view(word).substr(0, equals));
    if (number != options.numbers.end() && equals != std::string::npos) {
      number->second = std::stoull(word.substr(equals + 1));
    } else if (word == "memory=memfd") {
      options.kind = Kind::memfd;
    } else if (word == "huge") {
      options.pages = Pages::huge;
    } else if (word == "wait") {
      options.wait = true;
    } else if (word != "memory=anon") {
      fail_plainly(("what is " + word + "?").c_str());
    }
  }
  return options;
}

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

void wait_for_a_line() {
  std::puts("ready");
  std::fflush(stdout);
  if (std::getchar() == EOF) std::exit(0);
}

/// The guest's work. How many words were wrong.
std::uint64_t work(Vm& vm, const GuestMemory& memory, const Options& options) {
  const auto number = [&](const char* name) { return options.numbers.find(name)->second; };
  const std::uint64_t touched = std::max<std::uint64_t>(number("touch"), 1) * guest::kPage;
  const std::uint64_t written = touched * number("write");
  const std::uint64_t balloon = memory.size - (number("balloon") << 20U);
  const std::uint64_t used = memory.size * number("part") / 100 / guest::kHugePage * guest::kHugePage;
  const std::uint64_t begin = std::max(memory.size - used, guest::kData);
  const Vm::Range all{begin, memory.size, touched, number("words")};
  std::uint64_t bad = vm.verify(all, guest::kSnapshotSeed, Vm::Holds::pattern);
  if (written != 0) {
    const Vm::Range some{begin, memory.size, written, number("words")};
    vm.fill(some, kWrittenSeed);
    bad += vm.verify(some, kWrittenSeed, Vm::Holds::pattern);
    // What lies between them is as it was.
    for (std::uint64_t next = begin + touched; next < begin + written; next += touched)
      bad += vm.verify({next, memory.size, written, number("words")}, guest::kSnapshotSeed, Vm::Holds::pattern);
  }
  if (options.wait) wait_for_a_line();
  if (balloon == memory.size) return bad;
  give_back(memory, balloon, memory.size - balloon);
  return bad + vm.verify({balloon, memory.size, guest::kPage, 512}, 0, Vm::Holds::zeroes);
}

int run(Clock::time_point started, const Restored& restored, const Options& options) {
  Vm vm(restored.memory);
  const std::uint64_t first = vm.verify({restored.memory.size - guest::kPage, restored.memory.size, guest::kPage, 512},
                                        guest::kSnapshotSeed, Vm::Holds::pattern);
  const double answered = milliseconds_since(started);
  const std::uint64_t bad = first + work(vm, restored.memory, options);
  std::printf("%llu MiB, first answer after %.1f ms, all done after %.1f ms, %llu words bad\n",
              static_cast<unsigned long long>(restored.memory.size >> 20U), answered, milliseconds_since(started),
              static_cast<unsigned long long>(bad));
  return bad == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() < 3)
    fail_plainly("make FILE MIB | firecracker SOCKET MIB [options] | handoff SOCKET EXPORT [options]");
  const Options options = parse({words.begin() + 3, words.end()});
  const Clock::time_point started = Clock::now();
  if (words[0] == "make") {
    guest::make_snapshot(words[1], std::stoull(words[2]) << 20U);
    return 0;
  }
  if (words[0] == "firecracker") {
    const std::uint64_t size = std::stoull(words[2]) << 20U;
    return run(started, restore_firecracker(words[1], size, options.kind, options.pages), options);
  }
  if (words[0] == "handoff") return run(started, restore_handoff(words[1], words[2]), options);
  fail_plainly("make, firecracker or handoff");
}
