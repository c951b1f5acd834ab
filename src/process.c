#include "process.h"

#include "admission.h"
#include "config_files.h"
#include "confine.h"
#include "log.h"

#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

void
process_keep_memory(void)
{
	mallopt(M_MMAP_THRESHOLD, 64 * 1024 * 1024);
	mallopt(M_TRIM_THRESHOLD, 512 * 1024 * 1024);
	mallopt(M_TOP_PAD, 1024 * 1024);
}

int
process_raise_descriptors(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 1024;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	getrlimit(RLIMIT_NOFILE, &limit);
	return limit.rlim_cur > INT32_MAX ? INT32_MAX : (int)limit.rlim_cur;
}

static void
say_unreadable(const char *path, void *context)
{
	(void)context;
	if (faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) < 0)
		log_line(LOG_LEVEL_WARNING,
			 "%s cannot be read any more by the daemon's user: a reload will fail",
			 path);
}

int
process_confine(const struct generation *first, struct failure *why)
{
	struct text_list directories;
	int result = config_files_directories(first, &directories, why);

	if (result == 0 && (first->user.uid != (uid_t)-1 || first->user.gid != (gid_t)-1)) {
		result = confine_become(&first->user, why);
		if (result == 0)
			config_files_each(first, say_unreadable, NULL);
	}
	if (result == 0 && first->no_new_privs)
		result = confine_no_new_privileges(why);
	if (result == 0 && first->landlock && confine_reading(&directories, why) != 0) {
		log_line(LOG_LEVEL_NOTICE, "reading is not confined: %s", why->text);
	}
	for (size_t i = 0; i < directories.count; i++)
		free(directories.at[i]);
	free(directories.at);
	return result;
}

unsigned int
process_cpus(void)
{
	cpu_set_t cpus;
	if (sched_getaffinity(0, sizeof(cpus), &cpus) < 0)
		return 1;
	int count = CPU_COUNT(&cpus);
	return count > 0 ? (unsigned int)count : 1;
}

void
process_fill_in(struct generation *generation, unsigned int workers)
{
	struct rlimit limit;
	struct sysinfo machine;

	if (!generation->max_connections && getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		/* Two descriptors a connection, beside the reserve and what the daemon itself holds. */
		uint64_t own = ADMISSION_RESERVE + 32 + 8 * (uint64_t)workers;
		for (size_t i = 0; i < generation->tunnel_count; i++)
			own += generation->tunnels[i]->listen.count * workers;
		uint64_t all = limit.rlim_cur > INT32_MAX ? INT32_MAX : limit.rlim_cur;
		generation->max_connections = all > own + 2 ? (all - own) / 2 : 1;
		generation->has_fitting_cap = true;
	}
	if (!generation->max_memory && sysinfo(&machine) == 0)
		generation->max_memory = (uint64_t)machine.totalram * machine.mem_unit / 4;
}
