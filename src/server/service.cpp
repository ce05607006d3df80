#include "server/service.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>

#include "base/log.h"
#include "memtypes/builtin.h"
#include "server/report.h"
#include "server/serve.h"
#include "uffda/module.h"

namespace uffda {
namespace {

constexpr const char* kDevice = "/dev/userfaultfd";
constexpr std::uint64_t kHighestAddress = std::uint64_t{1} << 57U;  // no user address of any x86-64 or arm64 is above
constexpr Duration kReadSlice = std::chrono::milliseconds(250);     // between looks at whether the server ends
constexpr Duration kReadGrace =
    std::chrono::seconds(2);  // the core's own deadline comes first: its reason is the better one

/// Address and length are multiples of `unit`, and the range is one that a process can have.
Result<void> check_range(Address address, ByteCount length, std::uint64_t unit) {
  if (address.value % unit != 0 || length.value % unit != 0) {
    return fail(Errc::invalid_argument, fmt::format("address {:#x} and length {:#x} are not both multiples of {}",
                                                    address.value, length.value, unit));
  }
  if (length.value == 0) return fail(Errc::invalid_argument, "a range of no bytes");
  if (address.value >= kHighestAddress || length.value > kHighestAddress - address.value) {
    return fail(Errc::invalid_argument,
                fmt::format("no process has {:#x} bytes at {:#x}", length.value, address.value));
  }
  return {};
}

Result<void> check_place(const MemoryObject& object, const HandoffBackend::MapPlace& place) {
  const std::uint64_t unit = object.folio_size().value;
  UFFDA_TRY_VOID(check_range(place.address, place.length, unit));
  if (place.offset.value % unit != 0) {
    return fail(Errc::invalid_argument, fmt::format("offset {:#x} is not a multiple of {}", place.offset.value, unit));
  }
  const std::uint64_t end = align_up(object.size().value, unit);
  if (place.offset.value >= end || place.length.value > end - place.offset.value) {
    return fail(Errc::out_of_range,
                fmt::format("{:#x} bytes from {:#x} on are not all within the export of {:#x} bytes",
                            place.length.value, place.offset.value, object.size().value));
  }
  return {};
}

Result<void> check_options(const ServeOptions& options) {
  if (options.max_clients == 0 || options.max_connections == 0 || options.max_mappings == 0) {
    return fail(Errc::invalid_argument, "a limit of 0 clients, connections or mappings would serve nobody");
  }
  if (options.max_mappings > AddressSpace::kMaxMappings) {
    return fail(Errc::invalid_argument,
                fmt::format("at most {} mappings of one address space", AddressSpace::kMaxMappings));
  }
  if (options.deadline <= Duration::zero() || options.warn_after <= Duration::zero()) {
    return fail(Errc::invalid_argument, "the deadline and the warning time of a source are more than 0");
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Service>> Service::create(const ServeOptions& options, std::function<void()> on_change,
                                                 Held* held) {
  UFFDA_TRY_VOID(check_options(options));
  for (const std::string& file : options.modules)
    UFFDA_TRY(load_module(file, {.deadline = options.deadline, .isolate = options.isolate_modules}));
  std::unique_ptr<Service> service(new Service(options, held != nullptr));
  const std::shared_ptr<KeptState> kept = held != nullptr ? held->state() : nullptr;
  service->core_ = UFFDA_TRY(
      Core::create({.budget = options.budget, .warn_after = options.warn_after, .deadline = options.deadline}));
  UFFDA_TRY_VOID(register_builtin_types(service->core_->types()));
  service->core_->on_source_failure(
      [watchers = service->watchers_](const SourceFailure& failure) { watchers->tell(failure); });
  service->exports_ = UFFDA_TRY(Exports::open(*service->core_, options.exports, kept.get()));
  if (held != nullptr) UFFDA_TRY_VOID(held->confirm());
  for (const auto& [name, object] : service->exports_.all()) service->watchers_->know(object->name(), name);
  service->fills_ = UFFDA_TRY(Fills::start(service->exports_, options));
  for (const ExportSpec& spec : options.exports)
    if (spec.kill) service->killing_.insert(UFFDA_TRY(service->exports_.find(spec.name)).get());
  service->spaces_ = AddressSpaces::create(
      service->core_, options.max_clients,
      {.on_change = std::move(on_change),
       .on_lost = [raw = service.get()](const auto& process,
                                        const auto& object) { raw->client_lost(process, object); }},
      kept);
  if (kept) service->adopt_clients(*kept);
  return service;
}

void Service::client_lost(const os::ProcessHandle& process, const MemoryObject& object) const {
  if (!killing_.contains(&object)) return;
  const auto killed = os::kill_process(process.pidfd.get());
  if (!killed && killed.error().code() == Errc::gone) return;
  log(LogLevel::error, "process {} touched what cannot be had of {}: {}", process.pid, object.name(),
      killed ? "killed" : "SIGBUS, for it cannot be killed: " + killed.error().message());
}

void Service::adopt_clients(KeptState& kept) {
  kept.drop_unclaimed();
  spaces_->adopt([this](std::uint32_t number) -> std::shared_ptr<MemoryObject> {
    for (const auto& [name, object] : exports_.all()) {
      if (object->number() == number) return object;
    }
    return nullptr;
  });
  for (const auto& [name, object] : exports_.all()) object->mappers_known();
}

Result<void> Service::prepare_takeover() {
  if (!held_)
    return fail(Errc::unsupported, "this server was started without --holder: nobody can take over what it has");
  for (const auto& [name, object] : exports_.all()) {
    if (!object->writes_back()) continue;
    std::uint64_t seen = object->failures_told();
    const auto stored =
        object->sync({.start = {0}, .length = object->size()}, Deadline::after(core_->options().deadline), seen);
    if (!stored) log(LogLevel::warning, "{}: not stored before the takeover: {}", name, stored.error().message());
  }
  return {};
}

Service::~Service() { stop(); }

void Service::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  if (spaces_) spaces_->stop();
}

Result<HandoffBackend::Opened> Service::open_export(const std::string& name) {
  const auto object = UFFDA_TRY(exports_.find(name));
  const bool writable = object->writes_back();
  return Opened{.size = object->size(),
                .folio_size = object->folio_size(),
                .writable = writable,
                .cache = writable ? UFFDA_TRY(object->share_writable()) : UFFDA_TRY(object->share())};
}

Result<handoff::Token> Service::attach(Attach request) { return spaces_->attach(std::move(request)); }

Result<void> Service::map(const handoff::Token& token, const std::string& name, const MapPlace& place) {
  return attach_mapping(token, name, place, Sharing::shared);
}

Result<void> Service::map_shared(const handoff::Token& token, const std::string& name, const MapPlace& place) {
  const auto space = UFFDA_TRY(spaces_->find(token));
  UFFDA_TRY(find_writable(name));
  constexpr std::uint64_t kNeeded = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
  if ((space->userfault().features() & kNeeded) != kNeeded) {
    return fail(Errc::invalid_argument,
                "a mapping that can be written to needs a userfaultfd with UFFD_FEATURE_PAGEFAULT_FLAG_WP and "
                "UFFD_FEATURE_WP_HUGETLBFS_SHMEM");
  }
  return attach_mapping(token, name, place, Sharing::shared_writable);
}

Result<std::shared_ptr<MemoryObject>> Service::find_writable(const std::string& name) const {
  auto object = UFFDA_TRY(exports_.find(name));
  if (!object->writes_back())
    return fail(Errc::permission_denied, fmt::format("export '{}' can only be read: serve it as NAME=URI,rw", name));
  return object;
}

Result<void> Service::attach_mapping(const handoff::Token& token, const std::string& name, const MapPlace& place,
                                     Sharing sharing) {
  const auto space = UFFDA_TRY(spaces_->find(token));
  const auto object = UFFDA_TRY(exports_.find(name));
  UFFDA_TRY_VOID(check_place(*object, place));
  if (space->mapping_count() >= max_mappings_) {
    return fail(Errc::no_memory, fmt::format("{} mappings are this server's limit for one client", max_mappings_));
  }
  return space->attach(place.address, place.length, object, place.offset, sharing);
}

Result<void> Service::attach_copied(Attach request, std::span<const CopiedPlace> places) {
  std::vector<std::shared_ptr<MemoryObject>> objects;
  for (const CopiedPlace& copied : places) {
    objects.push_back(UFFDA_TRY(exports_.find(copied.name)));
    UFFDA_TRY_VOID(check_place(*objects.back(), copied.place));
  }
  if (places.size() > max_mappings_)
    return fail(Errc::no_memory, fmt::format("{} mappings are this server's limit for one client", max_mappings_));
  const auto show_all = [&](AddressSpace& space) -> Result<void> {
    for (std::size_t i = 0; i < places.size(); ++i) {
      const MapPlace& place = places[i].place;
      UFFDA_TRY_VOID(space.attach(place.address, place.length, objects[i], place.offset, Sharing::copied));
    }
    os::wake_everything(space.userfault());
    return {};
  };
  UFFDA_TRY(spaces_->attach(std::move(request), show_all));
  return {};
}

Result<void> Service::unmap(const handoff::Token& token, Address address, ByteCount length) {
  const auto space = UFFDA_TRY(spaces_->find(token));
  UFFDA_TRY_VOID(check_range(address, length, kPageSize.value));
  space->detach(address, length);
  return {};
}

Result<std::size_t> Service::read(const std::string& name, ByteOffset offset, std::span<std::byte> bytes) {
  const auto object = UFFDA_TRY(exports_.find(name));
  const std::uint64_t size = object->length().value;
  if (offset.value >= size) return 0U;
  const auto part = bytes.first(static_cast<std::size_t>(std::min<std::uint64_t>(bytes.size(), size - offset.value)));
  const Deadline deadline = Deadline::after(core_->options().deadline + kReadGrace);
  for (;;) {
    auto done = object->read(offset, part, Deadline::at(std::min(deadline.when(), Clock::now() + kReadSlice)));
    if (done) return part.size();
    if (done.error().code() != Errc::timed_out || deadline.passed()) return std::unexpected(done.error());
    if (stopping_.load(std::memory_order_relaxed)) return fail(Errc::gone, "the server is ending");
  }
}

Result<void> Service::write(const std::string& name, ByteOffset offset, std::span<const std::byte> bytes) {
  const auto object = UFFDA_TRY(find_writable(name));
  const Deadline deadline = Deadline::after(core_->options().deadline + kReadGrace);
  const ByteCount end{offset.value + bytes.size()};
  if (end.value < offset.value) return fail(Errc::out_of_range, "behind every end");
  if (end > object->length()) UFFDA_TRY_VOID(object->resize(end, deadline, MemoryObject::Resize::grow));
  return object->write(offset, bytes, deadline);
}

Result<ByteCount> Service::resize(const std::string& name, std::uint64_t size, Resize how) {
  const auto object = UFFDA_TRY(exports_.find(name));
  if (size == handoff::kKeepSize || size == object->length().value) return object->length();
  UFFDA_TRY(find_writable(name));
  UFFDA_TRY_VOID(object->resize({size}, Deadline::after(core_->options().deadline + kReadGrace),
                                how == Resize::grow ? MemoryObject::Resize::grow : MemoryObject::Resize::exactly));
  return object->length();
}

Result<void> Service::sync(const std::string& name, ByteRange range, std::uint64_t& seen) {
  const auto object = UFFDA_TRY(find_writable(name));
  if (range.length.value == 0) {
    seen = object->failures_told();
    return {};
  }
  return object->sync(range, Deadline::after(core_->options().deadline + kReadGrace), seen);
}

Result<os::UniqueFd> Service::open_device() {
  os::UniqueFd device(::open(kDevice, O_RDWR | O_CLOEXEC));
  if (device) return device;
  return fail(
      Errc::permission_denied,
      fmt::format(
          "the server may not open {} either: run it as root, or give its user access (setfacl -m u:USER:rw {})",
          kDevice, kDevice),
      errno);
}

Result<std::string> Service::stats() { return report(handoff::kMaxMessage - sizeof(handoff::Header)); }

std::string Service::report(std::size_t max_bytes) const {
  const ServerCounts counts{.address_spaces = spaces_->count(),
                            .connections = connections_.load(std::memory_order_relaxed),
                            .watchers = watchers_->count()};
  return report_json(*core_, exports_, *fills_, spaces_->list(), counts, max_bytes);
}

}  // namespace uffda
