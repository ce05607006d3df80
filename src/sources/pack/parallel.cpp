#include <pthread.h>

#include <algorithm>
#include <csignal>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "sources/pack/writer.h"

namespace uffda::pack {

unsigned all_cpus() {
  constexpr unsigned kMost = 128;
  return std::clamp(std::thread::hardware_concurrency(), 1U, kMost);
}

namespace {

/// What the threads of one call share.
struct Shared {
  std::atomic<std::uint64_t> next{0};
  std::atomic<bool> failed{false};
  Mutex mutex;
  std::optional<Error> error UFFDA_GUARDED_BY(mutex);

  void note(Error why) {
    const MutexLock lock(mutex);
    if (!error) error.emplace(std::move(why));
    failed = true;
  }
};

}  // namespace

Result<void> in_parallel(unsigned threads, std::uint64_t count,
                         const std::function<Result<void>(std::uint64_t, unsigned)>& work) {
  Shared shared;
  const auto run = [&](unsigned thread) {
    for (std::uint64_t number = shared.next++; number < count && !shared.failed; number = shared.next++) {
      if (auto done = work(number, thread); !done) shared.note(std::move(done).error());
    }
  };
  // A signal of the program is handled on its own thread: the mask is inherited.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::vector<std::thread> others;
  try {
    for (unsigned i = 1; i < threads && i < count; ++i) others.emplace_back(run, i);
  } catch (const std::system_error&) {
    // The work is done by those that there are.
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  run(0);
  for (std::thread& other : others) other.join();
  const MutexLock lock(shared.mutex);
  if (shared.error) return std::unexpected(*std::move(shared.error));
  return {};
}

}  // namespace uffda::pack
