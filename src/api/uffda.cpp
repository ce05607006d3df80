#include "uffda/uffda.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <optional>

#include "api/engine.h"
#include "api/memory.h"
#include "memtypes/builtin.h"
#include "monitors/background_fill.h"
#include "monitors/recording_file.h"
#include "os/userfault.h"

namespace uffda {

namespace {

/// What the faults of a monitor's memory need besides what it asks for.
constexpr UffdFeatures kMonitorFeatures{UffdFeature::pagefault_flag_wp, UffdFeature::wp_hugetlbfs_shmem,
                                        UffdFeature::thread_id,         UffdFeature::exact_address,
                                        UffdFeature::event_remap,       UffdFeature::event_remove,
                                        UffdFeature::event_unmap,       UffdFeature::move};

constexpr std::uint64_t kLocalFeatures = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_POISON |
                                         UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS |
                                         UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

/// Piece by piece, each with its own time: how long all of it takes is the source's business.
Result<void> populate_all(MemoryObject& object, Duration deadline) {
  const std::uint64_t step = std::max((1_MiB).value, object.folio_size().value);
  for (std::uint64_t start = 0; start < object.size().value; start += step) {
    const ByteCount length{std::min(step, object.size().value - start)};
    UFFDA_TRY_VOID(object.populate({.start = {start}, .length = length}, Deadline::after(deadline)));
  }
  return {};
}

Sharing sharing_of(const MemoryObject& object, Access access) {
  if (access == Access::private_ || !object.cached()) return Sharing::private_;
  return access == Access::read_only ? Sharing::shared : Sharing::shared_writable;
}

Result<std::unique_ptr<os::Userfault>> open_userfault(const EngineOptions& options) {
  const bool in_thread = options.handlers == HandlerPolicy::in_thread;
  std::uint64_t features = kLocalFeatures | (in_thread ? UFFD_FEATURE_SIGBUS : 0);
  if (options.handlers == HandlerPolicy::per_cpu) features |= UFFD_FEATURE_THREAD_ID;  // where a fault comes from
  if (options.monitors) features |= (kMonitorFeatures | *options.monitors).bits();
  return os::open_userfault({.features = features,
                             .blocking = !in_thread && !options.monitors,
                             .user_mode_fallback = options.kernel_faults == KernelFaults::optional});
}

Result<os::MappedMemory> map_registered(os::Userfault& userfault, UffdModes modes, MemoryObject& object,
                                        Access access) {
  const int fd = object.backing().mapping_fd();
  const ByteCount length{align_up(object.size().value, object.folio_size().value)};
  const int flags = fd < 0                       ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
                    : access == Access::private_ ? MAP_PRIVATE | MAP_NORESERVE
                                                 : MAP_SHARED;
  // Without access until it is registered: mlockall(MCL_FUTURE) would fill it with zero pages.
  auto mapped = os::map_memory(length, PROT_NONE, flags, fd);
  if (!mapped && access == Access::private_ && mapped.error().sys_errno() == EINVAL) {
    return fail(Errc::unsupported, fmt::format("memory type {} cannot be mapped privately", object.type().name()));
  }
  os::MappedMemory mapping = UFFDA_TRY(std::move(mapped));
  const UffdOps& ops = *object.type().ops();
  const bool async = (userfault.features() & UFFD_FEATURE_WP_ASYNC) != 0;
  if (ops.wp_async_only && !async) modes = modes & UffdModes{UffdMode::missing, UffdMode::minor};
  modes = modes & ops.modes;
  if (!modes.empty() && (object.faults() || ops.wp_async_only))
    UFFDA_TRY(userfault.register_range(mapping.address(), length, modes));
  // A child of fork() would lose the registration, and read zeroes; it gets SIGSEGV instead.
  if (::madvise(mapping.bytes().data(), length.value, MADV_DONTFORK) != 0) return fail_errno(errno, "madvise");
  return mapping;
}

}  // namespace

Result<std::unique_ptr<Memory::Impl>> Memory::Impl::create(std::shared_ptr<Engine::Impl> engine,
                                                           std::shared_ptr<MemoryObject> object, Access access) {
  UFFDA_TRY_VOID(check_access(*engine, *object, access));
  if (access == Access::private_) object->note_private_mapping();
  // All that a monitor may ask for, from the start: registering for more later would split the mapping in the kernel.
  UffdModes modes{UffdMode::missing, UffdMode::minor};
  if (engine->monitors || access == Access::written_back) modes = modes | UffdMode::wp;
  auto mapping = UFFDA_TRY(map_registered(engine->space->userfault(), modes, *object, access));
  const ByteCount length{mapping.bytes().size()};
  UFFDA_TRY_VOID(engine->space->attach(mapping.address(), length, object, {}, sharing_of(*object, access)));
  const int protection = access == Access::read_only ? PROT_READ : PROT_READ | PROT_WRITE;
  if (::mprotect(mapping.bytes().data(), length.value, protection) != 0) {
    const int error = errno;
    engine->space->detach(mapping.address(), length);
    return fail_errno(error, "mprotect");
  }
  const std::uint64_t told = access == Access::written_back ? object->failures_told() : 0;
  // NOLINTNEXTLINE(modernize-make-unique): an aggregate whose members are named
  return std::unique_ptr<Impl>(new Impl{.engine = std::move(engine),
                                        .object = std::move(object),
                                        .mapping = std::move(mapping),
                                        .access = access,
                                        .failures_seen = told});
}

Result<void> Memory::Impl::check_access(const Engine::Impl& engine, const MemoryObject& object, Access access) {
  const bool writes_back = access == Access::written_back;
  if (writes_back && !object.writes_back()) {
    return fail(Errc::unsupported,
                object.name() + ": it was mapped first for something else than Access::written_back");
  }
  if (access == Access::shared && object.writes_back())
    return fail(Errc::unsupported, object.name() + ": what is written to it goes to its source: Access::written_back");
  const bool async = (engine.space->userfault().features() & UFFD_FEATURE_WP_ASYNC) != 0;
  if (writes_back && async) {
    return fail(Errc::unsupported,
                "an engine whose monitors follow writes by UffdFeature::wp_async cannot stop them: map what is written "
                "back with another one");
  }
  return {};
}

Memory::Memory(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Memory::Memory(Memory&&) noexcept = default;
Memory& Memory::operator=(Memory&&) noexcept = default;
Memory::~Memory() = default;

std::span<const std::byte> Memory::bytes() const { return impl_->mapping.bytes().first(impl_->object->size().value); }

ByteCount Memory::page_size() const { return impl_->object->folio_size(); }

std::span<std::byte> Memory::writable_bytes() {
  return impl_->access != Access::read_only ? impl_->mapping.bytes().first(impl_->object->size().value)
                                            : std::span<std::byte>{};
}

Result<void> Memory::populate(ByteRange range, Deadline deadline) { return impl_->object->populate(range, deadline); }

BackgroundFill Memory::populate_in_background(ByteCount per_second) {
  return uffda::populate_in_background({impl_->object}, {.per_second = per_second}, {}, impl_->engine);
}

struct Recording::Impl {
  std::unique_ptr<RecordingFile> file;
};

Recording::Recording(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Recording::Recording(Recording&&) noexcept = default;
Recording& Recording::operator=(Recording&&) noexcept = default;
Recording::~Recording() = default;

Result<void> Recording::save() { return impl_->file->save(); }

Result<Recording> Memory::record(const std::string& file) {
  auto recorder = UFFDA_TRY(WorkingSetRecorder::create(*impl_->object, impl_->object->name()));
  auto impl = std::make_unique<Recording::Impl>();
  impl->file = UFFDA_TRY(RecordingFile::create(file, {recorder}));
  UFFDA_TRY_VOID(impl_->object->observe(std::move(recorder)));
  return Recording(std::move(impl));
}

Result<BackgroundFill> Memory::Impl::prefetch(std::span<const WorkingSet> sets, std::string_view from) const {
  const auto set = find_working_set(sets, object->name(), object->size(), 1);
  if (!set) return std::unexpected(set.error().within(std::string(from)));
  return prefetch_working_set(object, **set, {}, engine);
}

Result<BackgroundFill> Memory::prefetch(const std::string& file) {
  return impl_->prefetch(UFFDA_TRY(read_working_sets(file)), file);
}

Result<BackgroundFill> Memory::prefetch() {
  PageSource& source = impl_->object->source();
  const std::vector<WorkingSet> sets = UFFDA_TRY(read_working_sets(source));
  if (sets.empty()) return fail(Errc::not_found, source.name() + ": no working set came with it");
  return impl_->prefetch(sets, source.name());
}

Result<void> Memory::sync(ByteRange range, Deadline deadline) {
  if (impl_->access != Access::written_back)
    return fail(Errc::unsupported, "only memory with Access::written_back has something to store");
  std::uint64_t seen = impl_->failures_seen.load(std::memory_order_relaxed);
  Result<void> synced = impl_->object->sync(range, deadline, seen);
  impl_->failures_seen.store(seen, std::memory_order_relaxed);
  return synced;
}

ByteCount Memory::dirty() const { return impl_->object->folio_size() * impl_->object->dirty_folios(); }

int Memory::descriptor() const {
  impl_->object->note_private_mapping();  // whoever maps it does so as he likes
  return impl_->object->backing().mapping_fd();
}

Result<Memory> Memory::map_again(Access access) const {
  return Memory(UFFDA_TRY(Impl::create(impl_->engine, impl_->object, access)));
}

Result<Engine> Engine::create(const EngineOptions& options) {
  auto impl = std::make_shared<Impl>();
  impl->core = UFFDA_TRY(
      Core::create({.budget = options.budget, .warn_after = options.warn_after, .deadline = options.deadline}));
  UFFDA_TRY_VOID(register_builtin_types(impl->core->types()));
  const bool in_thread = options.handlers == HandlerPolicy::in_thread;
  if (options.monitors && options.monitors->has(UffdFeature::sigbus) != in_thread) {
    return fail(Errc::unsupported,
                in_thread ? "faults handled in the faulting thread cannot be told to a monitor: what it asked for is "
                            "SIGBUS, so UffdFeature::sigbus has to be among EngineOptions::monitors"
                          : "a monitor gets SIGBUS in place of messages where faults are handled in the faulting "
                            "thread: UffdFeature::sigbus needs HandlerPolicy::in_thread");
  }
  // What a monitor has poisoned is told apart by PAGEMAP_SCAN, which came with that feature.
  if (options.monitors && in_thread && (UFFDA_TRY(os::kernel_userfault_features()) & UFFD_FEATURE_WP_ASYNC) == 0)
    return fail(Errc::unsupported, "UffdFeature::sigbus needs Linux 6.7");
  impl->monitors = options.monitors;
  impl->space = AddressSpace::create(impl->core, UFFDA_TRY(open_userfault(options)), "this process");
  if (options.monitors) {
    impl->loop = UFFDA_TRY(FaultLoop::start_polling(impl->space));  // for its events, if nothing else
  } else if (!in_thread) {
    impl->loop = UFFDA_TRY(FaultLoop::start_blocking(impl->space, options.handlers));
  }
  if (in_thread) impl->inline_faults = UFFDA_TRY(InlineFaults::start(impl->space));
  return Engine(std::move(impl));
}

Result<Memory> Engine::map(std::string_view uri, const MapOptions& options) {
  const bool writes = options.access == Access::written_back;
  return map(UFFDA_TRY(open_source(uri, writes ? OpenFor::writing : OpenFor::reading)), options);
}

Result<Memory> Engine::map(std::unique_ptr<PageSource> source, const MapOptions& options) {
  const bool writes = options.access == Access::written_back;
  auto object = UFFDA_TRY(impl_->core->create_object(std::move(source), options.type, options.budget,
                                                     writes ? OpenFor::writing : OpenFor::reading));
  if (!object->faults() && options.populate != Populate::first) {
    return fail(
        Errc::unsupported,
        fmt::format("memory type {} raises no missing or minor faults, so its pages cannot be fetched when they "
                    "are touched: map it with Populate::first, which fetches all of them before",
                    object->type().name()));
  }
  if (options.populate == Populate::first) UFFDA_TRY_VOID(populate_all(*object, impl_->core->options().deadline));
  return Memory(UFFDA_TRY(Memory::Impl::create(impl_, std::move(object), options.access)));
}

EngineReport Engine::report() const {
  const Stats& stats = impl_->core->stats();
  return {.faults_cached = stats.faults_cached,
          .faults_missing = stats.faults_missing,
          .faults_poisoned = stats.faults_poisoned,
          .folios_mapped = stats.folios_mapped,
          .fetches = stats.fetches,
          .folios_evicted = stats.folios_evicted,
          .folios_written_back = stats.folios_written_back,
          .writeback_failures = stats.writeback_failures,
          .bytes_fetched = {stats.bytes_fetched},
          .resident = impl_->core->resident(),
          .apart = impl_->core->apart()};
}

namespace {

Result<Engine> default_engine() {
  static std::mutex mutex;
  static std::optional<Engine> engine;
  const std::scoped_lock lock(mutex);
  if (!engine) engine = UFFDA_TRY(Engine::create());
  return *engine;
}

}  // namespace

Result<Memory> map(std::string_view uri, const MapOptions& options) {
  return UFFDA_TRY(default_engine()).map(uri, options);
}

Result<Memory> map(std::unique_ptr<PageSource> source, const MapOptions& options) {
  return UFFDA_TRY(default_engine()).map(std::move(source), options);
}

}  // namespace uffda
