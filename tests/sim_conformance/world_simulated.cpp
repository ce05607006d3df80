#include "sim_conformance/world_simulated.h"

#include <fmt/format.h>

#include <array>
#include <cerrno>

#include "os/memory.h"

namespace uffda::conformance {
namespace {

constexpr std::uint64_t kBase = 0x7000'0000'0000;
constexpr std::uint64_t kTarget = 0x7000'1000'0000;
constexpr std::uint64_t kOther = 0x7000'2000'0000;
constexpr std::uint64_t kAside = 0x7000'3000'0000;

/// A fiber that does what it is told, one thing at a time.
class FiberWorker {
 public:
  FiberWorker() : fiber_(sim::spawn("worker", [this] { run(); })) {}
  ~FiberWorker() {
    stopping_ = true;
    changed_.wake_all();
    sim::join(fiber_);
  }
  FiberWorker(const FiberWorker&) = delete;
  FiberWorker& operator=(const FiberWorker&) = delete;

  [[nodiscard]] std::uint32_t id() const { return sim::number_of(fiber_); }
  [[nodiscard]] bool busy() const { return static_cast<bool>(task_); }
  void start(Workers::Task task) {
    while (task_) changed_.wait();
    task_ = std::move(task);
    changed_.wake_all();
  }
  bool idle_by(TimePoint when) {
    while (task_ && changed_.wait(when)) {
    }
    return !task_;
  }
  std::string outcome() { return std::exchange(outcome_, {}); }

 private:
  void run() {
    while (true) {
      while (!task_ && !stopping_) changed_.wait();
      if (!task_) return;
      outcome_ = task_();
      task_ = nullptr;
      changed_.wake_all();
    }
  }

  Workers::Task task_;
  std::string outcome_;
  bool stopping_ = false;
  sim::WaitList changed_;
  sim::Fiber* fiber_;
};

class FiberWorkers final : public Workers {
 public:
  std::uint32_t id(int thread) override { return at(thread).id(); }
  bool busy(int thread) override { return at(thread).busy(); }
  void start(int thread, Task task) override { at(thread).start(std::move(task)); }
  bool idle_within(int thread, Duration time) override { return at(thread).idle_by(sim::now() + time); }
  std::string outcome(int thread) override { return at(thread).outcome(); }
  std::chrono::steady_clock::time_point now() override { return sim::now(); }

 private:
  FiberWorker& at(int thread) { return all_.at(static_cast<std::size_t>(thread)); }
  std::array<FiberWorker, kThreads + 1> all_;
};

UffdOutcome outcome_of(const sim::Resolved& resolved) { return {.error = resolved.error, .done = resolved.field}; }

class SimulatedWorld final : public World {
 public:
  explicit SimulatedWorld(const Kind& kind)
      : World(kind.unit, kind.features.has(UffdFeature::wp_async)), kernel_({}), process_(kernel_.start_process()) {
    const bool anon = std::string_view(kind.type) == "anon";
    const auto file = anon ? nullptr : kernel_.create_file("conformance", length());
    copies_ = !anon && kind.access == Access::private_;
    context_ = kernel_.open_userfault(*process_, kind.features.bits());
    process_->set_context(context_);
    base_ = {kBase};
    aside_ = {kAside};
    map({.start = kBase, .file = file, .shared = !anon && !copies_});
    map({.start = kAside});
    // What runs beyond the end of the memory meets other memory.
    map({.start = kBase + length().value});
    map({.start = kTarget + length().value});
    if (anon) return;
    other_ = {kOther};
    map({.start = kOther, .file = file, .shared = true});
  }

  Workers& workers() override { return workers_; }
  std::string touch(Address at, How how, std::uint8_t value) override {
    const std::size_t byte = at.value % sim::kPage;
    const sim::Touched touched =
        process_->touch(at.value, how == How::load ? sim::Access::read : sim::Access::write, [&](sim::PageBytes& page) {
          if (how == How::store) page.at(byte) = static_cast<std::byte>(value);
        });
    if (touched.outcome == sim::Touched::Outcome::segv) return "SIGSEGV";
    if (touched.outcome == sim::Touched::Outcome::sigbus) return "SIGBUS";
    return how == How::store ? "stored" : fmt::format("{}", static_cast<unsigned>(touched.bytes.at(byte)));
  }
  std::string change(Change what, Address at, ByteCount length) override {
    if (what == Change::dontneed) process_->madvise_dontneed(at.value, length.value);
    if (what == Change::replace) process_->mmap({.start = at.value, .length = length.value, .accessible = false});
    if (what == Change::remove) {
      const sim::Vma& vma = *process_->find(at.value);
      kernel_.punch(*vma.file, vma.index_of(at.value), vma.index_of(at.value) + length.value / sim::kPage);
    }
    return "done";
  }
  std::string remap() override {
    target_ = {kTarget};
    if (!process_->mremap(base().value, kTarget, length().value)) return fmt::format("errno {}", EFAULT);
    process_->mmap({.start = base().value, .length = length().value, .accessible = false});
    return "moved";
  }
  std::string fork() override {
    process_->fork([](const auto&) {})->exit();
    return "done";
  }

  Registered register_range(Address start, ByteCount length, std::uint64_t modes) override {
    Registered said;
    said.error = context_->register_range(start, length, modes, said.ioctls);
    return said.error == 0 ? said : Registered{.error = said.error, .ioctls = 0};
  }
  int unregister_range(Address start, ByteCount length) override { return context_->unregister_range(start, length); }
  UffdOutcome copy(Address to, const void* from, ByteCount length, ResolveFlags flags) override {
    std::vector<std::byte> bytes(length.value);
    bytes.resize(os::copy_readable(bytes, {reinterpret_cast<std::uintptr_t>(from)}).value);
    return outcome_of(context_->copy(to, bytes, length, mode_of(flags, {ResolveFlag::wp})));
  }
  UffdOutcome zeropage(Address start, ByteCount length, ResolveFlags flags) override {
    return outcome_of(context_->zeropage(start, length, mode_of(flags, {})));
  }
  UffdOutcome continue_(Address start, ByteCount length, ResolveFlags flags) override {
    return outcome_of(context_->continue_run(start, length, mode_of(flags, {ResolveFlag::wp})));
  }
  UffdOutcome poison(Address start, ByteCount length, ResolveFlags flags) override {
    return outcome_of(context_->poison(start, length, mode_of(flags, {})));
  }
  UffdOutcome move(Address to, Address from, ByteCount length, ResolveFlags flags) override {
    return outcome_of(context_->move(to, from, length, mode_of(flags, {ResolveFlag::allow_src_holes})));
  }
  UffdOutcome writeprotect(Address start, ByteCount length, ResolveFlags flags) override {
    return {.error = context_->writeprotect(start, length, writeprotect_mode_of(flags)), .done = {}};
  }
  UffdOutcome wake(Address start, ByteCount length) override {
    return {.error = context_->wake(start, length), .done = {}};
  }
  Written written(Address start, ByteCount length, Rearm rearm) override {
    std::vector<std::uint64_t> pages;
    Written found{.error = context_->scan_written(start, length, rearm == Rearm::yes, pages), .ranges = {}};
    for (const std::uint64_t page : found.error == 0 ? pages : std::vector<std::uint64_t>()) {
      WrittenRange* const last = found.ranges.empty() ? nullptr : &found.ranges.back();
      if (last != nullptr && last->start + last->length == Address{page}) {
        last->length += kPageSize;
      } else {
        found.ranges.push_back({.start = {page}, .length = kPageSize});
      }
    }
    return found;
  }
  std::vector<uffd_msg> read() override {
    std::vector<uffd_msg> messages(32);
    messages.resize(context_->read(messages, os::Wait::no).value_or(0));
    return messages;
  }
  void settle() override {}

 private:
  [[nodiscard]] ByteCount length() const { return unit() * kPages; }
  void map(sim::Vma vma) {
    vma.length = length().value;
    process_->mmap(std::move(vma));
  }

  sim::Kernel kernel_;
  std::shared_ptr<sim::Process> process_;
  std::shared_ptr<sim::Context> context_;
  FiberWorkers workers_;  // go first
};

}  // namespace

std::vector<std::string> run_simulated(const Script& script, const Kind& kind) {
  std::vector<std::string> seen;
  sim::run({.seed = 1, .stall_one_in = 0}, [&] {
    SimulatedWorld world(kind);
    seen = run(script, world);
  });
  return seen;
}

}  // namespace uffda::conformance
