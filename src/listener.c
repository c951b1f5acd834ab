#include "listener.h"

#include "admission.h"
#include "clock.h"
#include "endpoint.h"
#include "log.h"
#include "systemd.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* The most connections accepted in one go; it begins with one and grows while there are more. */
#define BURST_MOST 64
#define CALM       16
/* The most where each one opens filters, which takes a good deal longer. */
#define BURST_FILTERED  8
#define PAUSE_LEAST_NS  (10 * NS_PER_MS)
#define PAUSE_MOST_NS   (1 * NS_PER_S)
#define REFUSE_IN_A_ROW 256

struct acceptor {
	struct acceptor *next;
	struct door *door;
	struct listener *listener; /* NULL while it only drains */
	const struct tunnel_conf *conf;
	struct socket_address bound;
	struct event event;
	int fd;
	unsigned int burst, in_a_row;
	bool is_unix;
	bool served; /* by the switch-over under way; else it is about to be closed */
	bool is_held;
	struct acceptor *next_held;
};

/* --- opening ------------------------------------------------------------------------------------ */

static void
set(int fd, int level, int option, int value)
{
	/* None of these is worth refusing a listener for. */
	setsockopt(fd, level, option, &value, sizeof(value));
}

/* Options are set on the listener: accepted sockets inherit them. */
static void
set_tcp_options(int fd, const struct tunnel_conf *conf)
{
	set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set(fd, SOL_SOCKET, SO_OOBINLINE, 1); /* an urgent byte is a byte of the stream */
	set(fd, SOL_SOCKET, SO_KEEPALIVE, conf->keepalive != 0);
	if (conf->keepalive) {
		int seconds = (int)((conf->keepalive + NS_PER_S - 1) / NS_PER_S);
		set(fd, IPPROTO_TCP, TCP_KEEPIDLE, seconds);
		set(fd, IPPROTO_TCP, TCP_KEEPINTVL, seconds);
	}
}

static int
refuse_address(const struct socket_address *address, int error, const char *text,
	       struct failure *why)
{
	const char *advice = "";
	if (error == EADDRINUSE)
		advice = "; another program listens there, `ss -ltnp` tells which";
	else if (error == EADDRNOTAVAIL)
		advice = "; no interface of this machine has that address";
	else if (error == EACCES && address->port < IPPORT_RESERVED)
		advice = "; a port below 1024 takes root or CAP_NET_BIND_SERVICE";
	failure_set_errno(why, error, "cannot listen on %s", text);
	return failure_set(why, why->kind, "%s%s", why->text, advice);
}

static int
open_tcp(const struct socket_address *address, bool shared, struct failure *why)
{
	struct sockaddr_storage storage;
	char text[SOCKET_ADDRESS_TEXT];
	socklen_t length = socket_address_to(address, &storage);
	int fd = socket(address->family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	socket_address_text(address, text);
	if (fd < 0)
		return failure_set_errno(why, errno, "cannot open a socket for %s", text);
	set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
	if (shared)
		set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
	if (address->family == AF_INET6)
		set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
	if (bind(fd, (struct sockaddr *)&storage, length) < 0) {
		refuse_address(address, errno, text, why);
		close(fd);
		return -1;
	}
	return fd;
}

static int
start_listening(int fd, const struct tunnel_conf *conf, const char *text, struct failure *why)
{
	if (listen(fd, (int)conf->backlog) < 0)
		return failure_set_errno(why, errno, "cannot listen on %s", text);
	return 0;
}

/* SO_REUSEPORT would share the port with any daemon of the same user: a socket without it tells. */
static int
probe_tcp(const struct socket_address *address, struct failure *why)
{
	int fd = open_tcp(address, false, why);
	if (fd < 0)
		return -1;
	if (listen(fd, 1) < 0) {
		failure_set_errno(why, errno, "cannot listen");
		close(fd);
		return -1;
	}
	close(fd);
	return 0;
}

static void
learn_bound(struct listener *listener, int fd)
{
	struct sockaddr_storage storage;
	socklen_t length = sizeof(storage);
	getsockname(fd, (struct sockaddr *)&storage, &length);
	socket_address_from(&listener->bound, (struct sockaddr *)&storage, length);
}

/* Takes what systemd has kept of this listener over a restart; returns how many sockets. */
static unsigned int
take_stored(struct listener *listener)
{
	unsigned int count = 0;
	int fd;
	while (count < listener->socket_count && (fd = systemd_stored_take(listener->key)) >= 0)
		listener->sockets[count++] = fd;
	listener->is_stored = count > 0;
	return count;
}

static int
listen_tcp(struct listener *listener, const struct address *address, bool is_beside,
	   struct failure *why)
{
	unsigned int kept = take_stored(listener);
	listener->is_tcp = true;
	listener->bound = address->numeric;
	if (!kept && !is_beside && listener->bound.port && probe_tcp(&listener->bound, why) < 0)
		return -1;
	for (unsigned int i = 0; i < listener->socket_count; i++) {
		int fd = listener->sockets[i];
		if (fd < 0)
			fd = open_tcp(&listener->bound, true, why);
		if (fd < 0 && kept) { /* kept of another user's run: those have to do */
			listener->socket_count = i;
			break;
		}
		if (fd < 0)
			return -1;
		listener->sockets[i] = fd;
		if (!listener->bound.port) /* the kernel chose one: the others take the same */
			learn_bound(listener, fd);
		set_tcp_options(fd, listener->conf);
		if (start_listening(fd, listener->conf, address->text, why) < 0)
			return -1;
	}
	return 0;
}

/* A file that nobody listens behind is what a killed daemon left. */
static int
remove_stale(const char *path, const struct sockaddr *name, socklen_t length, struct failure *why)
{
	struct stat state;
	if (lstat(path, &state) < 0)
		return 0;
	if (!S_ISSOCK(state.st_mode))
		return failure_set(why, FAILURE_SYSTEM,
				   "%s is there and is no socket; remove it or listen elsewhere",
				   path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return failure_set_errno(why, errno, "cannot open a socket");
	int result = connect(fd, name, length);
	int error = errno;
	close(fd);
	if (result < 0 && error == EACCES)
		return failure_set_errno(why, error,
					 "%s is there, and whether somebody listens cannot be told",
					 path);
	if (result == 0 || error != ECONNREFUSED)
		return failure_set(
			why, FAILURE_SYSTEM,
			"cannot listen on unix:%s: another program does, `ss -lxp` tells "
			"which",
			path);
	if (unlink(path) < 0)
		return failure_set_errno(why, errno, "cannot replace the stale socket %s", path);
	return 0;
}

static int
set_path_rights(const char *path, const struct tunnel_conf *conf, struct failure *why)
{
	if (chmod(path, conf->unix_mode) < 0)
		return failure_set_errno(why, errno, "cannot set unix_mode of %s", path);
	if ((conf->unix_owner.uid != (uid_t)-1 || conf->unix_owner.gid != (gid_t)-1) &&
	    chown(path, conf->unix_owner.uid, conf->unix_owner.gid) < 0)
		return failure_set_errno(why, errno, "cannot set unix_owner of %s", path);
	return 0;
}

static int
claim_path(struct listener *listener, const char *path, struct failure *why)
{
	struct stat state;

	listener->path = strdup(path);
	if (!listener->path)
		return failure_set(why, FAILURE_MEMORY, "no memory for a listener");
	if (set_path_rights(path, listener->conf, why) < 0)
		return -1;
	if (lstat(path, &state) == 0) {
		listener->path_device = state.st_dev;
		listener->path_inode = state.st_ino;
	}
	return 0;
}

static bool
is_socket_file(const char *path)
{
	struct stat state;
	return lstat(path, &state) == 0 && S_ISSOCK(state.st_mode);
}

/* The kept socket whose file is gone: nobody can reach it. */
static void
drop_stored(struct listener *listener)
{
	if (!listener->is_stored)
		return;
	close(listener->sockets[0]);
	systemd_store_forget(listener->key);
	listener->is_stored = false;
}

static int
refuse_unix(const struct address *address, int error, struct failure *why)
{
	const char *advice = "";
	if (error == ENOENT)
		advice = "; its directory is not there, make it first";
	else if (error == EADDRINUSE)
		advice = "; another program listens there, `ss -lxp` tells which";
	else if (error == EACCES)
		advice = "; the daemon's user may not make files in its directory";
	failure_set_errno(why, error, "cannot listen on %s", address->text);
	return failure_set(why, why->kind, "%s%s", why->text, advice);
}

static int
listen_unix(struct listener *listener, const struct address *address, struct failure *why)
{
	struct sockaddr_storage storage;
	struct sockaddr *name = (struct sockaddr *)&storage;
	socklen_t length = address_to_unix(address, &storage, why);
	bool has_path = address->kind == ADDRESS_UNIX;

	listener->bound.family = AF_UNIX;
	listener->bound.uid = UINT32_MAX;
	if (!length)
		return -1;
	if (take_stored(listener) && (!has_path || is_socket_file(address->name))) {
		if (has_path && claim_path(listener, address->name, why) < 0)
			return -1;
		return start_listening(listener->sockets[0], listener->conf, address->text, why);
	}
	if (has_path && remove_stale(address->name, name, length, why) < 0)
		return -1;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return failure_set_errno(why, errno, "cannot open a socket");
	drop_stored(listener);
	listener->sockets[0] = fd;
	/* Until its mode is set nobody else may connect. */
	mode_t mask = umask(0177);
	int result = bind(fd, name, length);
	int error = errno;
	umask(mask);
	if (result < 0)
		return refuse_unix(address, error, why);
	if (has_path && claim_path(listener, address->name, why) < 0)
		return -1;
	return start_listening(fd, listener->conf, address->text, why);
}

/* Takes over a socket that a socket unit has opened; its file, if any, is systemd's. */
static void
inherit(struct listener *listener, int fd)
{
	listener->is_inherited = true;
	listener->sockets[0] = fd;
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	learn_bound(listener, fd);
	if (listener->bound.family != AF_UNIX)
		set_tcp_options(fd, listener->conf);
}

static struct listener *
new_listener(const char *key, const struct address *address, const struct tunnel_conf *conf,
	     unsigned int count, struct failure *why)
{
	struct listener *listener = calloc(1, sizeof(*listener) + count * sizeof(int));

	if (!listener) {
		failure_set(why, FAILURE_MEMORY, "no memory for a listener");
		return NULL;
	}
	for (unsigned int i = 0; i < count; i++)
		listener->sockets[i] = -1;
	listener->socket_count = count;
	listener->conf = conf;
	listener->key = strdup(key);
	listener->text = strdup(address->text);
	if (listener->key && listener->text)
		return listener;
	failure_set(why, FAILURE_MEMORY, "no memory for a listener");
	listener_close(listener);
	return NULL;
}

static unsigned int
larger(unsigned int a, unsigned int b)
{
	return a > b ? a : b;
}

struct listener *
listener_open(const char *key, const struct address *address, unsigned int index,
	      const struct tunnel_conf *conf, unsigned int workers, bool is_beside,
	      struct failure *why)
{
	int fd = -1, result;

	if (address->kind == ADDRESS_SYSTEMD)
		fd = systemd_listen_fd(address->name, index, why);
	else if (systemd_listen_address(address, &fd, why) < 0)
		return NULL;
	if (fd < 0 && address->kind == ADDRESS_SYSTEMD)
		return NULL;
	bool shared = fd < 0 && address->kind == ADDRESS_IP;
	struct listener *listener = new_listener(
		key, address, conf, shared ? larger(workers, systemd_stored_count(key)) : 1, why);
	if (!listener) {
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	if (fd >= 0) {
		inherit(listener, fd);
		return listener;
	}
	if (shared)
		result = listen_tcp(listener, address, is_beside, why);
	else
		result = listen_unix(listener, address, why);
	if (result == 0)
		return listener;
	listener_close(listener);
	return NULL;
}

static bool
is_every_address(const struct socket_address *address)
{
	static const uint8_t zeros[sizeof(address->ip)];
	return memcmp(address->ip, zeros, sizeof(zeros)) == 0;
}

bool
listener_overlaps(const struct listener *listener, const struct address *address)
{
	const struct socket_address *numeric = &address->numeric;
	return listener->is_tcp && address->kind == ADDRESS_IP &&
	       listener->bound.family == numeric->family && listener->bound.port == numeric->port &&
	       (is_every_address(&listener->bound) || is_every_address(numeric));
}

void
listener_store(struct listener *listener)
{
	if (listener->is_stored || listener->is_inherited)
		return;
	for (unsigned int i = 0; i < listener->socket_count && listener->sockets[i] >= 0; i++)
		listener->is_stored |= systemd_store(listener->key, listener->sockets[i]);
}

bool
listener_forget(struct listener *listener)
{
	bool was_stored = listener->is_stored;
	if (was_stored)
		systemd_store_forget(listener->key);
	listener->is_stored = false;
	return was_stored;
}

void
listener_adopt(struct listener *listener, const struct tunnel_conf *conf)
{
	struct failure why;

	listener->conf = conf;
	if (listener->path && set_path_rights(listener->path, conf, &why) < 0)
		log_line(LOG_LEVEL_WARNING, "%s", why.text);
}

bool
listener_is_lost(const struct listener *listener)
{
	struct stat state;
	return listener->path &&
	       (lstat(listener->path, &state) < 0 || state.st_dev != listener->path_device ||
		state.st_ino != listener->path_inode);
}

void
listener_close(struct listener *listener)
{
	if (!listener)
		return;
	for (unsigned int i = 0; i < listener->socket_count; i++)
		if (listener->sockets[i] >= 0)
			close(listener->sockets[i]);
	if (listener->path && !listener->is_stored && !listener_is_lost(listener))
		unlink(listener->path);
	free(listener->path);
	free(listener->text);
	free(listener->key);
	free(listener);
}

const char *
listener_text(const struct listener *listener, char text[SOCKET_ADDRESS_TEXT])
{
	if (listener->bound.family == AF_UNIX || listener->bound.family == AF_UNSPEC)
		return listener->text;
	return socket_address_text(&listener->bound, text);
}

/* --- accepting ---------------------------------------------------------------------------------- */

static void
refuse(struct acceptor *acceptor, int fd, const struct socket_address *client,
       const struct failure *why)
{
	endpoint_reset_socket(fd);
	if (acceptor->door->logged)
		admission_log_refusal(acceptor->conf, client, why);
}

/* Of all workers: descriptors are the process's. */
static atomic_uint_fast64_t complained_ns;

static void
complain(void)
{
	uint64_t now_ns = clock_now_ns();
	uint_fast64_t last_ns = atomic_load_explicit(&complained_ns, memory_order_relaxed);

	if (last_ns && now_ns < last_ns + NS_PER_S)
		return;
	if (!atomic_compare_exchange_strong(&complained_ns, &last_ns, now_ns))
		return; /* another worker says so just now */
	log_line(LOG_LEVEL_WARNING,
		 "out of descriptors: waiting clients are refused; raise the limit "
		 "of open files or lower max_connections");
}

static bool
is_paused(const struct door *door)
{
	return event_pending(door->pause, EV_TIMEOUT, NULL);
}

/* Has it accept again what comes, unless there is something against that. Without memory it is asked for again after
 * a pause. */
static void
listen_on(struct acceptor *acceptor)
{
	struct door *door = acceptor->door;
	struct timeval after;

	if (acceptor->is_held || is_paused(door) || event_add(&acceptor->event, NULL) == 0)
		return;
	clock_to_timeval(PAUSE_MOST_NS, &after);
	event_add(door->pause, &after);
}

static void
append_held(struct door *door, struct acceptor *acceptor)
{
	if (!door->held.first)
		door->held.end = &door->held.first;
	acceptor->next_held = NULL;
	*door->held.end = acceptor;
	door->held.end = &acceptor->next_held;
}

static void
remove_held(struct door *door, struct acceptor *acceptor)
{
	struct acceptor **link = &door->held.first;
	while (*link != acceptor)
		link = &(*link)->next_held;
	*link = acceptor->next_held;
	if (!*link)
		door->held.end = link;
}

/* What it would bring has no room: who is not told of clients does not ask after them again and again. */
static void
hold(struct acceptor *acceptor)
{
	struct door *door = acceptor->door;
	bool is_first = !door->held.first;

	if (acceptor->is_held)
		return;
	acceptor->is_held = true;
	append_held(door, acceptor);
	event_del(&acceptor->event);
	if (is_first)
		door->on_held(door);
}

static void
let_go(struct acceptor *acceptor)
{
	if (!acceptor->is_held)
		return;
	acceptor->is_held = false;
	remove_held(acceptor->door, acceptor);
	if (!acceptor->door->held.first)
		acceptor->door->on_free(acceptor->door);
}

static void
pause_accepting(struct door *door)
{
	struct timeval after;

	complain();
	if (!door->pause_ns)
		door->pause_ns = PAUSE_LEAST_NS;
	clock_to_timeval(door->pause_ns, &after);
	if (event_add(door->pause, &after) < 0)
		return; /* without memory for it nothing would end the pause */
	for (struct acceptor *acceptor = door->first; acceptor; acceptor = acceptor->next)
		event_del(&acceptor->event);
	door->pause_ns = door->pause_ns * 2 < PAUSE_MOST_NS ? door->pause_ns * 2 : PAUSE_MOST_NS;
}

static void
open_spare(struct door *door)
{
	door->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* No descriptor is left: those who wait are told so, by means of the spare one, and then we pause. */
static void
refuse_waiting(struct acceptor *acceptor)
{
	struct door *door = acceptor->door;

	for (int refused = 0; door->spare >= 0 && refused < REFUSE_IN_A_ROW; refused++) {
		close(door->spare);
		int fd = accept4(acceptor->fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd >= 0) {
			endpoint_reset_socket(fd);
			admission_refused(acceptor->conf, REFUSAL_DESCRIPTORS);
		}
		open_spare(door);
		if (fd < 0)
			break;
	}
	pause_accepting(door);
}

static void
admit(struct acceptor *acceptor, int fd, struct socket_address *client)
{
	struct door *door = acceptor->door;
	struct failure why;

	if (acceptor->is_unix) {
		struct ucred peer;
		socklen_t length = sizeof(peer);
		client->family = AF_UNIX;
		client->uid = UINT32_MAX;
		if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0)
			client->uid = peer.uid;
		set(fd, SOL_SOCKET, SO_OOBINLINE, 1); /* that one is not inherited */
	}
	if (admission_is_reserved(fd, acceptor->conf)) {
		complain();
		admission_refused(acceptor->conf, REFUSAL_DESCRIPTORS);
		endpoint_reset_socket(fd);
		return;
	}
	const struct socket_address *judged =
		tunnel_conf_judges_late(acceptor->conf) ? NULL : client;
	if (admission_enter(acceptor->conf, judged, clock_now_ns(), &why) < 0) {
		refuse(acceptor, fd, client, &why);
		return;
	}
	struct facts facts = { .client = *client, .peer = *client, .accepted = acceptor->bound };
	door->place(door, acceptor->conf, fd, &facts);
}

/* Whether it must wait for room, or behind those who do. Not one that is about to be closed: nobody would come back
 * to it. */
static bool
must_hold(const struct acceptor *acceptor)
{
	if (!acceptor->served || !acceptor->conf->shakes_hands)
		return false;
	bool is_full = !acceptor->door->has_room(acceptor->door);
	bool has_turn = acceptor->is_held || !acceptor->door->held.first;
	return is_full || !has_turn;
}

/* Accepts at most `most` connections, fewer if it is held; returns false once none is waiting. */
static bool
accept_some(struct acceptor *acceptor, unsigned int most)
{
	while (most--) {
		if (must_hold(acceptor)) {
			hold(acceptor);
			return true;
		}
		struct sockaddr_storage storage;
		socklen_t length = sizeof(storage);
		struct socket_address client = { .family = AF_UNSPEC };
		int fd = accept4(acceptor->fd, (struct sockaddr *)&storage, &length,
				 SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
			    errno == ENOMEM)
				refuse_waiting(acceptor);
			else if (errno != EAGAIN)
				continue; /* that one client's trouble (accept(2), "Error handling") */
			return false;
		}
		acceptor->door->pause_ns = 0;
		socket_address_from(&client, (struct sockaddr *)&storage, length);
		admit(acceptor, fd, &client);
	}
	return true;
}

static unsigned int
burst_most(const struct acceptor *acceptor)
{
	return acceptor->conf->near_chain.count ? BURST_FILTERED : BURST_MOST;
}

static void
on_incoming(evutil_socket_t fd, short what, void *context)
{
	struct acceptor *acceptor = context;
	(void)fd;
	(void)what;

	/* One at a time while they come one by one: then no call is spent on hearing that none waits. In a
	 * storm, more. */
	if (!accept_some(acceptor, acceptor->burst)) {
		acceptor->burst = 1;
		acceptor->in_a_row = 0;
	} else if (++acceptor->in_a_row >= CALM && acceptor->burst < burst_most(acceptor)) {
		acceptor->burst *= 2;
	}
}

static void
on_pause_over(evutil_socket_t fd, short what, void *context)
{
	struct door *door = context;
	(void)fd;
	(void)what;

	if (door->spare < 0)
		open_spare(door);
	for (struct acceptor *acceptor = door->first; acceptor; acceptor = acceptor->next)
		listen_on(acceptor);
	door_go_on(door);
}

static bool
may_go_on(struct door *door)
{
	return door->held.first && !is_paused(door) && door->has_room(door);
}

/* Who is held has its turn with one connection at a time, until no client waits there. */
static void
on_go_on(struct task *task)
{
	struct door *door = (struct door *)((char *)task - offsetof(struct door, go_on));

	for (int i = 0; i < BURST_FILTERED && may_go_on(door); i++) {
		struct acceptor *acceptor = door->held.first;
		bool is_over = !accept_some(acceptor, 1);
		remove_held(door, acceptor);
		append_held(door, acceptor);
		if (!is_over)
			continue;
		let_go(acceptor);
		listen_on(acceptor);
	}
	door_go_on(door);
}

void
door_go_on(struct door *door)
{
	if (may_go_on(door))
		loop_run_later(door->loop, &door->go_on);
}

int
door_open(struct door *door, struct failure *why)
{
	door->go_on.run = on_go_on;
	door->pause = evtimer_new(door->loop->base, on_pause_over, door);
	if (!door->pause)
		return failure_set(why, FAILURE_MEMORY, "no memory to accept connections");
	open_spare(door);
	return 0;
}

static void
close_acceptor(struct acceptor *acceptor)
{
	let_go(acceptor);
	event_del(&acceptor->event);
	close(acceptor->fd);
	free(acceptor);
}

void
door_close(struct door *door)
{
	while (door->first) {
		struct acceptor *acceptor = door->first;
		door->first = acceptor->next;
		close_acceptor(acceptor);
	}
	loop_forget(door->loop, &door->go_on);
	if (door->pause)
		event_free(door->pause);
	door->pause = NULL;
	if (door->spare >= 0)
		close(door->spare);
	door->spare = -1;
}

/* Changes the acceptors that serve the listener already; false if there are none. */
static bool
serve_on(struct door *door, const struct listener *listener, const struct tunnel_conf *conf)
{
	bool found = false;
	for (struct acceptor *acceptor = door->first; acceptor; acceptor = acceptor->next) {
		if (acceptor->listener != listener)
			continue;
		if (!acceptor->is_unix)
			set_tcp_options(acceptor->fd, conf);
		listen(acceptor->fd, (int)conf->backlog); /* again: a new backlog */
		acceptor->conf = conf;
		acceptor->served = true;
		found = true;
		if (acceptor->is_held && !conf->shakes_hands) {
			let_go(acceptor);
			listen_on(acceptor);
		}
	}
	return found;
}

static int
serve_socket(struct door *door, struct listener *listener, int *socket,
	     const struct tunnel_conf *conf, struct failure *why)
{
	struct acceptor *acceptor = calloc(1, sizeof(*acceptor));
	if (!acceptor)
		return failure_set(why, FAILURE_MEMORY, "no memory to accept connections");
	acceptor->door = door;
	acceptor->listener = listener;
	acceptor->conf = conf;
	acceptor->bound = listener->bound;
	acceptor->is_unix = listener->bound.family == AF_UNIX;
	acceptor->fd = *socket;
	*socket = -1;
	acceptor->burst = 1;
	acceptor->served = true;
	acceptor->next = door->first;
	door->first = acceptor;
	event_assign(&acceptor->event, door->loop->base, acceptor->fd, EV_READ | EV_PERSIST,
		     on_incoming, acceptor);
	if (event_add(&acceptor->event, NULL) < 0)
		return failure_set(why, FAILURE_MEMORY, "cannot watch a listener");
	return 0;
}

int
door_serve(struct door *door, struct listener *listener, const struct tunnel_conf *conf,
	   struct failure *why)
{
	if (serve_on(door, listener, conf))
		return 0;
	/* More sockets than workers: what was kept of a time with more of them. */
	for (unsigned int i = door->worker; i < listener->socket_count; i += door->workers)
		if (listener->sockets[i] >= 0 &&
		    serve_socket(door, listener, &listener->sockets[i], conf, why) < 0)
			return -1;
	return 0;
}

void
door_begin(struct door *door)
{
	for (struct acceptor *acceptor = door->first; acceptor; acceptor = acceptor->next)
		acceptor->served = false;
}

void
door_finish(struct door *door)
{
	struct acceptor **link = &door->first;
	while (*link) {
		struct acceptor *acceptor = *link;
		if (acceptor->served) {
			link = &acceptor->next;
			continue;
		}
		*link = acceptor->next;
		/* All who can have been waiting when it began; in a storm there would always be more. */
		uint64_t rounds = acceptor->conf->backlog / BURST_MOST + 1;
		while (rounds-- && accept_some(acceptor, BURST_MOST))
			;
		close_acceptor(acceptor);
	}
}

void
door_shut(struct door *door, bool (*stays)(const struct tunnel_conf *conf))
{
	for (struct acceptor *acceptor = door->first; acceptor; acceptor = acceptor->next)
		acceptor->served = stays(acceptor->conf);
	door_finish(door);
}
