# AppArmor profile of penstockd. What it may read besides its own directory goes into
# /etc/apparmor.d/local/usr.sbin.penstockd, for instance: /etc/letsencrypt/** r,

abi <abi/3.0>,

include <tunables/global>

profile penstockd /usr/sbin/penstockd {
	include <abstractions/base>
	include <abstractions/nameservice>
	include <abstractions/openssl>
	include <abstractions/ssl_certs>

	capability net_bind_service,
	# Of `user`, when root starts it.
	capability setgid,
	capability setuid,
	capability setpcap,
	# Of unix_owner.
	capability chown,

	network inet stream,
	network inet6 stream,
	network unix stream,

	/usr/sbin/penstockd mr,
	/etc/penstock/ r,
	/etc/penstock/** r,
	owner /etc/ssl/private/** r,
	/run/credentials/penstock.service/* r,
	owner /proc/@{pid}/root/run/credentials/penstock.service/* r,

	/run/penstock/ r,
	/run/penstock/** rw,
	/var/log/penstock/ r,
	/var/log/penstock/** rw,
	/run/systemd/notify w,
	/run/systemd/journal/socket w,
	/run/systemd/journal/dev-log w,
	/sys/devices/system/cpu/ r,
	/sys/devices/system/cpu/online r,

	# systemctl reload: kill -HUP, and the daemon's own signals.
	signal receive peer=unconfined,

	include if exists <local/usr.sbin.penstockd>
}
