#include "confine.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <libgen.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <pwd.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define READING \
	(LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR | LANDLOCK_ACCESS_FS_EXECUTE)

/* What name services, OpenSSL and the C library read while the daemon runs. /etc as a whole, since its
 * files are replaced by new ones: a rule on a file dies with the old one. */
static const char *const CONFINE_SYSTEM[] = {
	"/etc",
	"/usr",
	"/lib",
	"/lib64",
	"/dev",
	"/proc/self",
	"/proc/sys/net/ipv4/ip_local_port_range", /* dial.c */
	"/sys/devices/system/cpu",
	"/run/systemd",
	"/run/resolvconf",
	"/run/NetworkManager",
	"/run/nscd",
	"/run/credentials",
	NULL,
};

static struct text_list allowed; /* what reading is confined to; for good */
static bool is_confined;

/* --- another user --------------------------------------------------------------------------------- */

static int
drop_groups(uid_t uid, gid_t gid)
{
	const struct passwd *user = getpwuid(uid);
	return user ? initgroups(user->pw_name, gid) : setgroups(1, &gid);
}

/* Leaves the capability to bind low ports, if there is one. */
static int
keep_one_capability(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &header, data) < 0)
		return -1;
	uint32_t kept = data[0].permitted & UINT32_C(1) << CAP_NET_BIND_SERVICE;
	memset(data, 0, sizeof(data));
	data[0].permitted = data[0].effective = kept;
	return (int)syscall(SYS_capset, &header, data);
}

static void
bound_capabilities(void)
{
	for (unsigned long capability = 0; capability <= CAP_LAST_CAP; capability++)
		if (capability != CAP_NET_BIND_SERVICE)
			prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
}

int
confine_become(const struct owner *owner, struct failure *why)
{
	uid_t uid = owner->uid == (uid_t)-1 ? geteuid() : owner->uid;
	gid_t gid = owner->gid;

	if (gid == (gid_t)-1) {
		const struct passwd *user = getpwuid(uid);
		gid = user ? user->pw_gid : getegid();
	}
	if (geteuid() == uid && getegid() == gid && uid != 0)
		return 0;
	if (geteuid() != 0)
		return failure_set(why, FAILURE_SYSTEM,
				   "user: only root can become another user; start it as root, or "
				   "leave user out");
	bound_capabilities();
	if (drop_groups(uid, gid) < 0 || prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 ||
	    setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0 ||
	    keep_one_capability() < 0)
		return failure_set_errno(why, errno, "user: cannot become user %u, group %u", uid,
					 gid);
	return 0;
}

int
confine_no_new_privileges(struct failure *why)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return failure_set_errno(why, errno, "no_new_privs");
	return 0;
}

/* --- Landlock ------------------------------------------------------------------------------------- */

static int
allow(int rules, const char *path)
{
	struct landlock_path_beneath_attr rule = { .allowed_access = READING };
	struct stat state;

	rule.parent_fd = open(path, O_PATH | O_CLOEXEC);
	if (rule.parent_fd < 0)
		return 0; /* who is not there cannot be read */
	if (fstat(rule.parent_fd, &state) == 0 && !S_ISDIR(state.st_mode))
		rule.allowed_access &= ~(uint64_t)LANDLOCK_ACCESS_FS_READ_DIR;
	int result =
		(int)syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
	int error = errno;
	close(rule.parent_fd);
	errno = error;
	return result;
}

static int
keep_list(const struct text_list *directories)
{
	allowed.at = calloc(directories->count + 1, sizeof(*allowed.at));
	if (!allowed.at)
		return -1;
	for (size_t i = 0; i < directories->count; i++) {
		allowed.at[i] = strdup(directories->at[i]);
		if (!allowed.at[i])
			return -1;
		allowed.count++;
	}
	return 0;
}

/* Where the program itself lies: builds that measure coverage read what they wrote beside it. */
static void
allow_own(int rules)
{
	char path[4096];
	ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 1);
	if (length <= 0)
		return;
	path[length] = '\0';
	allow(rules, dirname(path));
}

/* Where OpenSSL is told to find the system's authorities, openssl-env(7ssl). */
static void
allow_authorities(int rules)
{
	const char *directory = getenv("SSL_CERT_DIR"), *file = getenv("SSL_CERT_FILE");
	char *copy = file ? strdup(file) : NULL;

	if (copy)
		allow(rules, dirname(copy));
	if (directory)
		allow(rules, directory);
	free(copy);
}

int
confine_reading(const struct text_list *directories, struct failure *why)
{
	struct landlock_ruleset_attr handled = { .handled_access_fs = READING };
	int rules = (int)syscall(SYS_landlock_create_ruleset, &handled, sizeof(handled), 0);
	int result = 0;

	if (rules < 0)
		return failure_set_errno(why, errno, "the kernel has no Landlock");
	for (size_t i = 0; CONFINE_SYSTEM[i] && result == 0; i++)
		result = allow(rules, CONFINE_SYSTEM[i]);
	for (size_t i = 0; i < directories->count && result == 0; i++)
		result = allow(rules, directories->at[i]);
	allow_own(rules);
	allow_authorities(rules);
	if (result == 0)
		result = keep_list(directories);
	if (result == 0)
		result = (int)syscall(SYS_landlock_restrict_self, rules, 0);
	if (result < 0)
		failure_set_errno(why, errno, "Landlock");
	close(rules);
	is_confined = result == 0;
	return result;
}

static bool
is_beneath(const char *path, const char *directory)
{
	size_t length = strlen(directory);
	return strncmp(path, directory, length) == 0 &&
	       (path[length] == '/' || path[length] == '\0' || strcmp(directory, "/") == 0);
}

static bool
is_covered(const struct text_list *directories, const char *path)
{
	for (size_t i = 0; CONFINE_SYSTEM[i]; i++)
		if (is_beneath(path, CONFINE_SYSTEM[i]))
			return true;
	for (size_t i = 0; i < directories->count; i++)
		if (is_beneath(path, directories->at[i]))
			return true;
	return false;
}

bool
confine_covers(const struct text_list *directories, const char *path)
{
	char *real = realpath(path, NULL);
	bool is_inside = is_covered(directories, real ? real : path);
	free(real);
	return is_inside;
}

int
confine_may_read(const char *path, struct failure *why)
{
	char *real = is_confined ? realpath(path, NULL) : NULL;
	bool is_outside = real && !is_covered(&allowed, real);
	free(real);
	if (!is_outside) /* of what is not there, who opens it says so */
		return 0;
	return failure_set(
		why, FAILURE_CONFIG,
		"%.120s lies outside of what the running daemon may read; restart it, or "
		"start it with landlock = \"false\"",
		path);
}
