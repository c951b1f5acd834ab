# AppArmor profile of penstockd. What it may read besides its own directory goes into
# /etc/apparmor.d/local/usr.sbin.penstockd, for instance: /etc/letsencrypt/** r,

abi <abi/3.0>,

include <tunables/global>

# The service has mounts of its own, so to the kernel some paths are not connected to its root: those of
# systemd's sockets, and of the daemon's credentials as the check before a reload finds them.
profile penstockd /usr/sbin/penstockd flags=(attach_disconnected) {
	include <abstractions/base>
	include <abstractions/nameservice>
	include <abstractions/openssl>
	include <abstractions/ssl_certs>

	capability net_bind_service,
	# Of `user`, when root starts it, which then reads keys that are that user's.
	capability dac_read_search,
	capability setgid,
	capability setuid,
	capability setpcap,
	# Of unix_owner.
	capability chown,

	network inet stream,
	network inet6 stream,
	unix,

	/usr/sbin/penstockd mr,
	/etc/penstock/ r,
	/etc/penstock/** r,
	/etc/ssl/private/** r,
	/run/credentials/penstock.service/* r,

	/run/penstock/ r,
	/run/penstock/** rw,
	# Of penstock.socket.
	/run/penstock-web.sock rw,
	/var/log/penstock/ r,
	/var/log/penstock/** rw,
	/run/systemd/notify w,
	/run/systemd/journal/socket w,
	/run/systemd/journal/dev-log w,
	# Names that systemd-resolved looks up.
	/run/systemd/resolve/io.systemd.Resolve rw,
	/sys/devices/system/cpu/ r,
	/sys/devices/system/cpu/online r,
	# What clients' ports may be; the daemon's own memory, for its metrics.
	@{PROC}/sys/net/ipv4/ip_local_port_range r,
	@{PROC}/@{pid}/statm r,

	# systemctl reload: kill -HUP, and the daemon's own signals.
	signal receive peer=unconfined,

	include if exists <local/usr.sbin.penstockd>
}
