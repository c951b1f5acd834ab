/*
 * penstockd: start, signals, stop.
 */
#include "admission.h"
#include "command.h"
#include "control.h"
#include "control_reload.h"
#include "control_stopping.h"
#include "log.h"
#include "process.h"
#include "standard_streams.h"

#include <event2/event.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* --- signals -------------------------------------------------------------------------------------- */

static void
on_hangup(evutil_socket_t fd, short what, void *context)
{
	(void)fd;
	(void)what;
	control_reload_soon(context, RELOAD_FILE);
}

static void
on_stop(evutil_socket_t fd, short what, void *context)
{
	(void)fd;
	(void)what;
	control_stopping_ask(context);
}

static void
on_reopen(evutil_socket_t fd, short what, void *context)
{
	(void)fd;
	(void)what;
	(void)context;
	log_reopen();
}

enum { SIGNALS = 4 };

static const struct {
	int number;
	event_callback_fn on;
} signals[SIGNALS] = {
	{ SIGHUP, on_hangup },
	{ SIGTERM, on_stop },
	{ SIGINT, on_stop },
	{ SIGUSR1, on_reopen },
};

/* Signals wait while nobody would handle them: before the loop turns, and again when it has ended, since
 * libevent then gives them back to the system, whose way with a TERM is to kill. */
static void
hold_signals(int how)
{
	sigset_t ours;

	sigemptyset(&ours);
	for (int i = 0; i < SIGNALS; i++)
		sigaddset(&ours, signals[i].number);
	pthread_sigmask(how, &ours, NULL);
}

static int
watch_signals(struct control *control, struct event *watched[SIGNALS], struct failure *why)
{
	for (int i = 0; i < SIGNALS; i++) {
		watched[i] = evsignal_new(control->base, signals[i].number, signals[i].on, control);
		if (!watched[i] || event_add(watched[i], NULL) < 0)
			return failure_set(why, FAILURE_MEMORY, "cannot watch for signals");
	}
	return 0;
}

/* --- the whole ------------------------------------------------------------------------------------ */

static int
start(struct control *control, struct event *watched[SIGNALS], struct generation *first,
      struct failure *why)
{
	if (log_start(first->log.target, (enum log_format)first->log.format,
		      (enum log_level)first->log.level, why) < 0)
		return -1;
	control->base = event_base_new();
	if (!control->base)
		return failure_set(why, FAILURE_SYSTEM, "cannot make an event loop");
	if (watch_signals(control, watched, why) < 0)
		return -1;
	return control_start(control, first, why);
}

/* Returns whether no thread is left that still works. */
static bool
stop(struct control *control, struct event *watched[SIGNALS])
{
	bool is_quiet = control_stop(control);

	for (int i = 0; i < SIGNALS; i++)
		if (watched[i])
			event_free(watched[i]);
	if (control->base)
		event_base_free(control->base);
	libevent_global_shutdown();
	return is_quiet;
}

static int
run(struct control *control, struct generation *first)
{
	struct event *watched[SIGNALS] = { 0 };
	struct failure why;
	int status = EXIT_SUCCESS;

	signal(SIGPIPE, SIG_IGN);
	process_keep_memory();
	admission_set_descriptors(process_raise_descriptors());
	if (process_confine(first, &why) == 0 && start(control, watched, first, &why) == 0) {
		hold_signals(SIG_UNBLOCK);
		event_base_loop(control->base, EVLOOP_NO_EXIT_ON_EMPTY);
		hold_signals(SIG_BLOCK);
		log_line(LOG_LEVEL_NOTICE, "stopped");
	} else {
		/* Straight to stderr: the journal does not know whose line it is once its writer is gone. */
		log_stop();
		log_line(LOG_LEVEL_ERROR, "cannot start: %s", why.text);
		counted_release(&first->counted);
		status = EXIT_FAILURE;
	}
	bool is_quiet = stop(control, watched);
	log_stop();
	if (!is_quiet)
		_exit(status);
	return status;
}

int
main(int argc, char **argv)
{
	struct command command;

	standard_streams_fill();
	int status = command_parse(&command, argc, argv);

	if (status >= 0)
		return standard_streams_end("penstockd", status);
	if (command.mode == COMMAND_RUN)
		hold_signals(SIG_BLOCK);
	struct control control = { .file = command.file };
	clock_gettime(CLOCK_REALTIME, &control.load_began);
	struct generation *first = command_load(command.file);
	if (!first)
		return EXIT_FAILURE;
	if (command.mode == COMMAND_RUN)
		return run(&control, first);
	status = command_do(&command, first);
	counted_release(&first->counted);
	return standard_streams_end("penstockd", status);
}
