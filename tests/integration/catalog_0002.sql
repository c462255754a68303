BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0002');
CREATE TABLE image_locations (
	id INTEGER NOT NULL, 
	image_id VARCHAR(36) NOT NULL, 
	value TEXT NOT NULL, 
	meta_data TEXT, 
	status VARCHAR(30) DEFAULT 'active' NOT NULL, 
	created_at DATETIME NOT NULL, 
	updated_at DATETIME, 
	deleted_at DATETIME, 
	deleted BOOLEAN NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(image_id) REFERENCES images (id)
);
INSERT INTO "image_locations" VALUES(1,'b07e8f68-bc2a-47de-a861-a572f3af2705','file://{disk}/b07e8f68-bc2a-47de-a861-a572f3af2705','{"store":"disk"}','active','2026-11-22 21:13:24.083511','2026-11-22 21:13:24.083511',NULL,0);
INSERT INTO "image_locations" VALUES(3,'018e4854-9153-4977-a865-abc0e6b0297d','file://{ram}/018e4854-9153-4977-a865-abc0e6b0297d','{"store":"ram"}','active','2026-11-22 21:13:32.201658','2026-11-22 21:13:32.201658',NULL,0);
CREATE TABLE images (
	id VARCHAR(36) NOT NULL, 
	name VARCHAR(255), 
	disk_format VARCHAR(20), 
	container_format VARCHAR(20), 
	size BIGINT, 
	virtual_size BIGINT, 
	status VARCHAR(30) NOT NULL, 
	visibility VARCHAR(9) DEFAULT 'shared' NOT NULL, 
	checksum VARCHAR(32), 
	os_hash_algo VARCHAR(64), 
	os_hash_value VARCHAR(128), 
	min_disk INTEGER NOT NULL, 
	min_ram INTEGER NOT NULL, 
	owner VARCHAR(255), 
	protected BOOLEAN DEFAULT 0 NOT NULL, 
	os_hidden BOOLEAN DEFAULT 0 NOT NULL, 
	created_at DATETIME NOT NULL, 
	updated_at DATETIME, 
	deleted_at DATETIME, 
	deleted BOOLEAN NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "images" VALUES('b07e8f68-bc2a-47de-a861-a572f3af2705','300007.raw','raw','bare',300007,NULL,'active','shared','57d9ff0c3f2542e36d4329907f83ac6a','sha512','84832583de7b6013977d1e63a2e3302f86eb6c8fb4799678e2ea3683c782a81c468078e2254de2eb7708cc605185a9a8b88db7836416dd74c0565aba92a66964',0,0,NULL,0,0,'2026-11-22 21:13:23.860596','2026-11-22 21:13:24.082146',NULL,0);
INSERT INTO "images" VALUES('018e4854-9153-4977-a865-abc0e6b0297d','300007.raw','raw','bare',300007,NULL,'active','shared','57d9ff0c3f2542e36d4329907f83ac6a','sha512','84832583de7b6013977d1e63a2e3302f86eb6c8fb4799678e2ea3683c782a81c468078e2254de2eb7708cc605185a9a8b88db7836416dd74c0565aba92a66964',0,0,NULL,0,0,'2026-11-22 21:13:23.957615','2026-11-22 21:13:32.203580',NULL,0);
INSERT INTO "images" VALUES('b0d28e11-35de-4d42-8757-6b95761b53f4','300007.raw','raw','bare',NULL,NULL,'importing','shared',NULL,NULL,NULL,0,0,NULL,0,0,'2026-11-22 21:13:29.311660','2026-11-22 21:13:29.534779',NULL,0);
CREATE TABLE job_checkpoints (
	job_id VARCHAR(36) NOT NULL, 
	epoch INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	saved_at DATETIME NOT NULL, 
	PRIMARY KEY (job_id)
);
CREATE TABLE jobs (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(36) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	phase VARCHAR(255) NOT NULL, 
	image_id VARCHAR(36) NOT NULL, 
	request TEXT NOT NULL, 
	request_id VARCHAR(64), 
	principal VARCHAR(255), 
	rate_limit BIGINT, 
	epoch INTEGER NOT NULL, 
	owner VARCHAR(64), 
	cleaned_epoch INTEGER NOT NULL, 
	failures INTEGER NOT NULL, 
	not_before DATETIME, 
	waiting_for VARCHAR(255), 
	cancel_requested BOOLEAN NOT NULL, 
	published BOOLEAN NOT NULL, 
	checkpoint TEXT NOT NULL, 
	error TEXT, 
	report TEXT, 
	created_at DATETIME NOT NULL, 
	updated_at DATETIME NOT NULL, 
	started_at DATETIME, 
	finished_at DATETIME, lease_until DATETIME, 
	UNIQUE (id)
);
INSERT INTO "jobs" VALUES(1,'f33a1d90-40d6-4f32-b2b6-46717b9bfcc2','import','succeeded','done','b07e8f68-bc2a-47de-a861-a572f3af2705','{"kind":"import","image":{"id":"b07e8f68-bc2a-47de-a861-a572f3af2705","name":"300007.raw"},"source":{"path":"{source}"},"stores":["disk"],"rate_limit":"60M"}','req-d99c1ce2-9be1-4a48-a254-dfed6d11d543','uid=0',62914560,1,'vm/368d8ce61c604430',1,0,NULL,NULL,0,1,'{"published":["disk"]}',NULL,'{"size_bytes":300007,"digests":{"md5":"57d9ff0c3f2542e36d4329907f83ac6a","sha512":"84832583de7b6013977d1e63a2e3302f86eb6c8fb4799678e2ea3683c782a81c468078e2254de2eb7708cc605185a9a8b88db7836416dd74c0565aba92a66964"},"bytes_read":300007,"bytes_through":300007,"resumed_from_bytes":0,"seconds":0.08433621199947083,"steps":[{"step":"write","store":"disk","method":"stream","reason":"the digests have to be computed (copy_file_range would not read the bytes)","bytes_through":300007,"seconds":0.07730739299586276,"outcome":"ok","verified":"inline: md5, sha512","error":null},{"step":"publish","store":"disk","method":"catalogue","reason":"","bytes_through":0,"seconds":0.0,"outcome":"ok","verified":"","error":null}],"bytes_per_s":3557273.8315764335}','2026-11-22 21:13:23.872534','2026-11-22 21:13:24.109618','2026-11-22 21:13:23.937790','2026-11-22 21:13:24.108469',NULL);
INSERT INTO "jobs" VALUES(2,'9caecbdf-ae8a-4f88-815b-0be23dabbeac','import','succeeded','done','018e4854-9153-4977-a865-abc0e6b0297d','{"kind":"import","image":{"id":"018e4854-9153-4977-a865-abc0e6b0297d","name":"300007.raw"},"source":{"path":"{source}"},"stores":["disk"],"rate_limit":"60M"}','req-e19296c6-68ca-472c-92e0-34775b8ea142','uid=0',62914560,1,'vm/368d8ce61c604430',1,0,NULL,NULL,0,1,'{"published":["disk"]}',NULL,'{"size_bytes":300007,"digests":{"md5":"57d9ff0c3f2542e36d4329907f83ac6a","sha512":"84832583de7b6013977d1e63a2e3302f86eb6c8fb4799678e2ea3683c782a81c468078e2254de2eb7708cc605185a9a8b88db7836416dd74c0565aba92a66964"},"bytes_read":300007,"bytes_through":300007,"resumed_from_bytes":0,"seconds":0.0915281240013428,"steps":[{"step":"write","store":"disk","method":"stream","reason":"the digests have to be computed (copy_file_range would not read the bytes)","bytes_through":300007,"seconds":0.05653441399772419,"outcome":"ok","verified":"inline: md5, sha512","error":null},{"step":"publish","store":"disk","method":"catalogue","reason":"","bytes_through":0,"seconds":0.0,"outcome":"ok","verified":"","error":null}],"bytes_per_s":3277757.555651404}','2026-11-22 21:13:23.960109','2026-11-22 21:13:24.132605','2026-11-22 21:13:23.974825','2026-11-22 21:13:24.129904',NULL);
INSERT INTO "jobs" VALUES(3,'eacc77bf-1a8c-4806-8511-b2f126b71694','import','running','transfer','b0d28e11-35de-4d42-8757-6b95761b53f4','{"kind":"import","image":{"id":"b0d28e11-35de-4d42-8757-6b95761b53f4","name":"300007.raw"},"source":{"path":"{source}"},"stores":["disk","ram"],"rate_limit":"64K"}','req-4e2334e3-2990-4345-b4d6-cc10211a6c79','uid=0',65536,1,'vm/98ed422e38704bfb',0,0,NULL,NULL,0,0,'{}',NULL,NULL,'2026-11-22 21:13:29.323940','2026-11-22 21:13:29.531903','2026-11-22 21:13:29.388575',NULL,'2026-11-22 21:13:59.394000');
INSERT INTO "jobs" VALUES(4,'06dbaa75-473d-4326-8b0b-ef934053b75b','copy','running','transfer','b07e8f68-bc2a-47de-a861-a572f3af2705','{"kind":"copy","image_id":"b07e8f68-bc2a-47de-a861-a572f3af2705","stores":["ram"],"verify":"readback","rate_limit":"64K"}','req-0e9bb889-081a-4630-b5c6-0f3796d28172','uid=0',65536,1,'vm/98ed422e38704bfb',0,0,NULL,NULL,0,0,'{}',NULL,NULL,'2026-11-22 21:13:30.889052','2026-11-22 21:13:31.151576','2026-11-22 21:13:31.081813',NULL,'2026-11-22 21:14:01.089000');
INSERT INTO "jobs" VALUES(5,'f5fe7d74-a4af-4670-851d-d20fdddd2281','delete','queued','queued','b07e8f68-bc2a-47de-a861-a572f3af2705','{"kind":"delete","image_id":"b07e8f68-bc2a-47de-a861-a572f3af2705"}','req-e192bd61-be80-4321-99ec-1e7fc3031b71','uid=0',NULL,0,NULL,0,0,NULL,NULL,0,0,'{}',NULL,NULL,'2026-11-22 21:13:31.984600','2026-11-22 21:13:31.984600',NULL,NULL,NULL);
INSERT INTO "jobs" VALUES(6,'ef84d7b4-a877-4304-838e-47d2ae1d8bfc','move','running','deleting the source','018e4854-9153-4977-a865-abc0e6b0297d','{"kind":"move","image_id":"018e4854-9153-4977-a865-abc0e6b0297d","to_store":"ram","from_store":"disk"}','req-ad8d3a6c-c1fa-4a1f-ac06-3dcd03724ea0','uid=0',NULL,1,'vm/98ed422e38704bfb',0,0,NULL,NULL,0,1,'{"old":{"store":"disk","key":"018e4854-9153-4977-a865-abc0e6b0297d","url":"file://{disk}/018e4854-9153-4977-a865-abc0e6b0297d","identity":"2286286:1795382004066249693:300007:1795382004074249693","shares_storage":false,"size_bytes":300007},"published":["ram"],"delete":{"identity":"2286286:1795382004066249693:300007:1795382004074249693","gone":false}}',NULL,'{"size_bytes":300007,"digests":{"md5":"57d9ff0c3f2542e36d4329907f83ac6a","sha512":"84832583de7b6013977d1e63a2e3302f86eb6c8fb4799678e2ea3683c782a81c468078e2254de2eb7708cc605185a9a8b88db7836416dd74c0565aba92a66964"},"bytes_read":300007,"bytes_through":600014,"resumed_from_bytes":0,"seconds":0.04073825200612191,"steps":[{"step":"write","store":"ram","method":"stream","reason":"ram: cannot take disk/018e4854-9153-4977-a865-abc0e6b0297d without reading it: {ram} is on another file system; no reflink into {ram} (Invalid cross-device link); no copy by the kernel into {ram} (Invalid cross-device link).","bytes_through":600014,"seconds":0.03450615100155119,"outcome":"ok","verified":"read back: xxh3_128","error":null},{"step":"publish","store":"ram","method":"catalogue","reason":"","bytes_through":0,"seconds":0.0,"outcome":"ok","verified":"","error":null}],"bytes_per_s":7364258.043151107}','2026-11-22 21:13:32.039982','2026-11-22 21:13:32.214809','2026-11-22 21:13:32.070773',NULL,'2026-11-22 21:14:02.075000');
CREATE INDEX checksum_image_idx ON images (checksum);
CREATE INDEX visibility_image_idx ON images (visibility);
CREATE INDEX ix_images_deleted ON images (deleted);
CREATE INDEX owner_image_idx ON images (owner);
CREATE INDEX created_at_image_idx ON images (created_at);
CREATE INDEX updated_at_image_idx ON images (updated_at);
CREATE INDEX os_hidden_image_idx ON images (os_hidden);
CREATE INDEX os_hash_value_image_idx ON images (os_hash_value);
CREATE INDEX ix_image_locations_image_id ON image_locations (image_id);
CREATE INDEX ix_image_locations_deleted ON image_locations (deleted);
CREATE INDEX ix_jobs_state_seq ON jobs (state, seq);
CREATE INDEX ix_jobs_image_id_state ON jobs (image_id, state);
CREATE INDEX ix_jobs_kind_seq ON jobs (kind, seq);
CREATE UNIQUE INDEX ux_jobs_running_image ON jobs (image_id) WHERE state = 'running';
CREATE INDEX ix_jobs_unclean ON jobs (seq) WHERE cleaned_epoch < epoch;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',6);
COMMIT;
