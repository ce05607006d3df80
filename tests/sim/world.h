// One simulated run: what there is in it, who does what, and what must hold.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mm/address_space.h"
#include "mm/core.h"
#include "mm/memory_object.h"
#include "sim/kernel.h"
#include "sim/source.h"

namespace uffda::sim {

/// What a seed decides before the run starts.
struct Plan {
  enum class Handling : std::uint8_t {
    remote,     ///< another process: events, readers that poll
    local,      ///< this process: readers that block
    in_thread,  ///< this process: faults are resolved by who takes them
  };
  struct Object {
    std::string type;
    ByteCount size;
    SourceHabits source;
    ByteCount budget{};  ///< its own; 0: none
  };
  Schedule schedule;
  KernelFaults faults;
  CoreOptions core;
  std::vector<Object> objects;
  std::vector<Handling> processes;
  unsigned threads = 1;       ///< of each process
  unsigned steps = 0;         ///< of each thread
  unsigned readers = 1;       ///< of each userfaultfd
  unsigned batch = 16;        ///< messages of one read
  bool pollution = false;     ///< somebody maps the page cache without registration
  bool punches = false;       ///< somebody punches the page cache
  unsigned direct_reads = 0;  ///< through MemoryObject::read and populate
  bool changes_mappings = false;
  bool monitors = false;     ///< each local process has one
  bool async = false;        ///< which follow writes instead of stopping them
  bool writes_back = false;  ///< what is stored to objects goes to their sources
  unsigned syncs = 0;        ///< of each such object
  unsigned looks = 0;        ///< at a log of what is stored to it
  unsigned crashes = 0;      ///< at most: the server is killed, and another one takes over
};

/// Pure: the same seed, the same plan.
Plan plan_of(std::uint64_t seed);
std::string describe(const Plan& plan);

class Crashes;
class Monitor;
class Program;

/// What happened in many runs: a simulation in which something never happens says nothing about it.
struct Totals {
  std::uint64_t touches = 0;
  std::uint64_t sigbus = 0;
  std::uint64_t fetches = 0;
  std::uint64_t failures = 0;
  std::uint64_t timeouts = 0;
  std::uint64_t evicted = 0;
  std::uint64_t deferred = 0;
  std::uint64_t events = 0;
  std::uint64_t forks = 0;
  std::uint64_t unknown = 0;
  std::uint64_t pollution = 0;
  std::uint64_t pushes = 0;
  std::uint64_t direct_reads = 0;
  std::uint64_t told = 0;
  std::uint64_t protections = 0;
  std::uint64_t scans = 0;
  std::uint64_t stores = 0;
  std::uint64_t written_back = 0;
  std::uint64_t write_failures = 0;
  std::uint64_t syncs = 0;
  std::uint64_t looks = 0;
  std::uint64_t crashes = 0;
  std::uint64_t asked_again = 0;
  std::uint64_t dropped = 0;  ///< pages of what is copied

  Totals& operator+=(const Totals& other);
};
std::string describe(const Totals& totals);

class World {
 public:
  World(const Plan& plan, Totals& totals);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  /// Everything that happens, to the end; violation() if a rule is broken.
  void run();

 private:
  friend class Crashes;
  friend class Monitor;
  friend class Program;
  struct Object {
    std::shared_ptr<MemoryObject> object;  ///< null: the server is dead
    std::shared_ptr<Truth> truth;
    bool cached = true;
    std::shared_ptr<File> file;  ///< its page cache
    /// Pages that hold a monitor's bytes, which are nowhere else, or what was stored.
    [[nodiscard]] std::uint64_t dirty() const;
  };

  /// The run goes on until it has ended.
  void must_end(Fiber* fiber) { busy_.push_back(fiber); }
  void start_server();
  void make_core();
  void make_object(std::size_t which, Successor successor = {});
  /// Has the server do it, once more if it dies meanwhile.
  void ask(const std::function<void()>& request);
  void count(Core& core);
  void start_program(const std::shared_ptr<Process>& process, Plan::Handling handling);
  void disturb();
  void read_directly(std::size_t object);
  void sync_often(std::size_t object);
  void follow_log(std::size_t object);
  /// At any time: what is cached and can be had again is within the budget.
  void check_budget() const;
  void check_quiet();
  void check_object(Object& object);
  void end();

  Plan plan_;
  Totals& totals_;
  Kernel kernel_;
  std::shared_ptr<Core> core_;
  std::vector<Object> objects_;
  std::vector<std::unique_ptr<Program>> programs_;
  std::vector<Fiber*> busy_;  // fibers that come to an end by themselves
  std::unique_ptr<Crashes> crashes_;
};

}  // namespace uffda::sim
